#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <cmt/error.hpp>
#include <mutex>
#include <numeric>
#include <utility>

#include "backends.hpp"

namespace cmt {
namespace {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw MachineError(std::string("CUDA cannot ") + what + ": " + cudaGetErrorString(status));
}

/// Keeps the last error, for TensorRT's functions only say that there was one.
class Logger : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity > Severity::kERROR) return;
    const std::lock_guard lock(mutex_);
    try {
      last_ = message;
    } catch (const std::bad_alloc&) {
      last_.clear();
    }
  }

  std::string last() const {
    const std::lock_guard lock(mutex_);
    return last_.empty() ? "it gave no reason" : last_;
  }

 private:
  mutable std::mutex mutex_;
  std::string last_;
};

/// An input or output: the same number of bytes on the GPU and, page-locked, on the host.
class Buffer {
 public:
  explicit Buffer(std::size_t bytes) : bytes_(bytes) {
    check(cudaMalloc(&device_, bytes), "allocate on the GPU");
    if (cudaMallocHost(&host_, bytes) != cudaSuccess) {
      cudaFree(device_);
      throw std::bad_alloc();
    }
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer(Buffer&& other) noexcept
      : bytes_(other.bytes_),
        device_(std::exchange(other.device_, nullptr)),
        host_(std::exchange(other.host_, nullptr)) {}
  Buffer& operator=(Buffer&&) = delete;
  ~Buffer() {
    cudaFree(device_);
    cudaFreeHost(host_);
  }

  void* device() const { return device_; }
  void* host() const { return host_; }
  void upload(cudaStream_t stream) const {
    check(cudaMemcpyAsync(device_, host_, bytes_, cudaMemcpyHostToDevice, stream), "copy");
  }
  void download(cudaStream_t stream) const {
    check(cudaMemcpyAsync(host_, device_, bytes_, cudaMemcpyDeviceToHost, stream), "copy");
  }

 private:
  std::size_t bytes_;
  void* device_ = nullptr;
  void* host_ = nullptr;
};

class Stream {
 public:
  Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "make a stream"); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { cudaStreamDestroy(stream_); }

  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// An input or output as the engine describes it.
struct Port {
  std::string name;
  std::vector<std::size_t> shape;
  nvinfer1::DataType type{};

  std::size_t bytes() const {
    return std::accumulate(shape.begin(), shape.end(), std::size_t{1}, std::multiplies<>()) *
           (type == nvinfer1::DataType::kUINT8 ? 1 : sizeof(float));
  }
};

/// `tensorrt` or `tensorrt_rtx`, and the version of the library that is loaded.
std::pair<std::string, std::string> version() {
#ifdef TRT_MAJOR_RTX
  const char* library = "tensorrt_rtx";
#else
  const char* library = "tensorrt";
#endif
  return {library, std::to_string(getInferLibMajorVersion()) + "." +
                       std::to_string(getInferLibMinorVersion()) + "." +
                       std::to_string(getInferLibPatchVersion())};
}

class TensorRtModel : public Model {
 public:
  TensorRtModel(const Bundle& bundle, const Artefact& artefact) {
    const std::string& name = artefact.file.path;
    runtime_.reset(nvinfer1::createInferRuntime(logger_));
    if (runtime_ == nullptr) throw MachineError("TensorRT does not start: " + logger_.last());
    // An engine is executable: what is hashed are the bytes that TensorRT gets.
    const std::string plan = bundle.read(artefact.file);
    runtime_->setEngineHostCodeAllowed(artefact.brings_runtime);
    if (artefact.dla_core) runtime_->setDLACore(*artefact.dla_core);
    engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
    if (engine_ == nullptr) {
      const auto [library, ours] = version();
      throw InputError(name + " was built with " + artefact.built + "; " + library + " " + ours +
                       " cannot load it on this GPU (" + logger_.last() + "): export it anew");
    }
    check_signature(bundle.manifest(), artefact, signature(bundle.manifest().batch));
  }

  std::unique_ptr<Session> make_session() const override;

  nvinfer1::ICudaEngine& engine() const { return *engine_; }
  const Logger& logger() const { return logger_; }
  const Port& input() const { return input_; }
  const std::vector<Port>& outputs() const { return outputs_; }

 private:
  /// Reads the ports too, whose batch is this one where the engine takes several.
  Signature signature(std::size_t batch) {
    using nvinfer1::DataType;
    std::size_t inputs = 0;
    bool known = true;
    for (std::int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
      const char* name = engine_->getIOTensorName(i);
      const bool is_input = engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
      const nvinfer1::Dims dims = engine_->getTensorShape(name);
      Port port{name, {}, engine_->getTensorDataType(name)};
      for (std::int32_t d = 0; d < dims.nbDims; ++d) {
        const bool any = d == 0 && dims.d[d] == -1;
        known = known && (any || dims.d[d] > 0);
        port.shape.push_back(any ? batch : static_cast<std::size_t>(dims.d[d]));
      }
      known = known && engine_->getTensorFormat(name) == nvinfer1::TensorFormat::kLINEAR &&
              (port.type == DataType::kFLOAT || (is_input && port.type == DataType::kUINT8));
      inputs += is_input ? 1 : 0;
      if (is_input) {
        input_ = std::move(port);
      } else {
        outputs_.push_back(std::move(port));
      }
    }
    std::vector<std::vector<std::size_t>> shapes;
    for (const Port& port : outputs_) shapes.push_back(port.shape);
    return {input_.shape, input_.type == DataType::kUINT8, shapes, known && inputs == 1};
  }

  Logger logger_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;  // outlives its engine
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  Port input_;
  std::vector<Port> outputs_;
};

class TensorRtSession : public Session {
 public:
  explicit TensorRtSession(const TensorRtModel& model)
      : logger_(model.logger()),
        context_(model.engine().createExecutionContext()),
        input_(model.input().bytes()) {
    if (context_ == nullptr) fail("make a context");
    const Port& source = model.input();
    nvinfer1::Dims dims = model.engine().getTensorShape(source.name.c_str());
    if (dims.d[0] == -1) {
      dims.d[0] = static_cast<decltype(+dims.d[0])>(source.shape[0]);
      if (!context_->setInputShape(source.name.c_str(), dims)) fail("take this batch");
    }
    bind(source, input_);
    for (const Port& port : model.outputs()) {
      buffers_.emplace_back(port.bytes());
      bind(port, buffers_.back());
      outputs_.push_back({port.shape, static_cast<const float*>(buffers_.back().host())});
    }
  }

  void* input() override { return input_.host(); }

  void infer() override {
    input_.upload(stream_.get());
    if (!context_->enqueueV3(stream_.get())) fail("run");
    for (const Buffer& buffer : buffers_) buffer.download(stream_.get());
    check(cudaStreamSynchronize(stream_.get()), "run the engine");
  }

  const std::vector<Output>& outputs() const override { return outputs_; }

 private:
  [[noreturn]] void fail(const char* what) const {
    throw MachineError(std::string("TensorRT cannot ") + what + ": " + logger_.last());
  }
  void bind(const Port& port, const Buffer& buffer) {
    if (!context_->setTensorAddress(port.name.c_str(), buffer.device())) fail("bind a buffer");
  }

  const Logger& logger_;
  Stream stream_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  Buffer input_;
  std::vector<Buffer> buffers_;
  std::vector<Output> outputs_;
};

std::unique_ptr<Session> TensorRtModel::make_session() const {
  return std::make_unique<TensorRtSession>(*this);
}

std::optional<std::string> missing() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count > 0) return std::nullopt;
  return std::string("no CUDA device (") + cudaGetErrorString(status) + ")";
}

std::shared_ptr<const Model> load(const Bundle& bundle, const Artefact& artefact, int /*threads*/,
                                  const std::string& /*GPU 0*/) {
  return std::make_shared<TensorRtModel>(bundle, artefact);
}

}  // namespace

const Backend kTensorRt{"tensorrt", missing, load, version, true};

}  // namespace cmt
