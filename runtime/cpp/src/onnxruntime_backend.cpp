#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <string_view>

#include "backends.hpp"

namespace cmt {
namespace {

using Shape = std::vector<std::int64_t>;

constexpr const char* kCuda = "CUDA";
constexpr std::string_view kProvider = "ExecutionProvider";

/// ONNX Runtime takes this one by a function of its own.
void append_cuda(Ort::SessionOptions* options) {
  OrtCUDAProviderOptionsV2* made = nullptr;
  Ort::ThrowOnError(Ort::GetApi().CreateCUDAProviderOptions(&made));
  const auto release = [](auto* one) { Ort::GetApi().ReleaseCUDAProviderOptions(one); };
  const std::unique_ptr<OrtCUDAProviderOptionsV2, decltype(release)> cuda(made, release);
  options->AppendExecutionProvider_CUDA_V2(*cuda);
}

/// Memory for one input or output, and ONNX Runtime's view of it.
class Tensor {
 public:
  Tensor(const Shape& shape, bool bytes)
      : values_(std::accumulate(
            shape.begin(), shape.end(), std::size_t{1},
            [](std::size_t n, std::int64_t side) { return n * static_cast<std::size_t>(side); })),
        view_(Ort::Value::CreateTensor(
            Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault), values_.data(),
            values_.size() * (bytes ? 1 : sizeof(float)), shape.data(), shape.size(),
            bytes ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)) {}

  float* values() { return values_.data(); }
  const Ort::Value& view() const { return view_; }

 private:
  std::vector<float> values_;  ///< or bytes, in the first quarter
  Ort::Value view_;
};

class OrtModel : public Model {
 public:
  OrtModel(const Bundle& bundle, const Artefact& artefact, int threads, const std::string& device)
      : session_(environment_, bundle.path(artefact.file).c_str(),
                 options(threads, bundle.manifest().batch, device)) {
    environment_.DisableTelemetryEvents();
    const Ort::AllocatorWithDefaultOptions allocator;
    Signature signature;
    const std::size_t outputs = session_.GetOutputCount();
    signature.known = session_.GetInputCount() == 1;
    const auto add = [&](const Ort::AllocatedStringPtr& name, const Ort::TypeInfo& type) {
      const auto tensor = type.GetTensorTypeAndShapeInfo();
      names_.emplace_back(name.get());
      shapes_.push_back(tensor.GetShape());
      if (!shapes_.back().empty() && shapes_.back().front() < 0) {  // the symbol set in `options`
        shapes_.back().front() = static_cast<std::int64_t>(bundle.manifest().batch);
      }
      const bool fixed = std::all_of(shapes_.back().begin(), shapes_.back().end(),
                                     [](std::int64_t side) { return side > 0; });
      const auto kind = tensor.GetElementType();
      const bool bytes = names_.size() == 1 && kind == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
      signature.takes_bytes = signature.takes_bytes || bytes;
      signature.known =
          signature.known && fixed && (bytes || kind == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
    };
    if (signature.known) {
      add(session_.GetInputNameAllocated(0, allocator), session_.GetInputTypeInfo(0));
      signature.input.assign(shapes_.front().begin(), shapes_.front().end());
      for (std::size_t i = 0; i < outputs; ++i) {
        add(session_.GetOutputNameAllocated(i, allocator), session_.GetOutputTypeInfo(i));
        signature.outputs.emplace_back(shapes_.back().begin(), shapes_.back().end());
      }
    }
    check_signature(bundle.manifest(), artefact, signature);
    takes_bytes_ = signature.takes_bytes;
  }

  std::unique_ptr<Session> make_session() const override;

  /// Of the input, then of the outputs.
  const std::vector<std::string>& names() const { return names_; }
  const std::vector<Shape>& shapes() const { return shapes_; }
  bool takes_bytes() const { return takes_bytes_; }
  Ort::Session& session() const { return session_; }

 private:
  static Ort::SessionOptions options(int threads, std::size_t batch, const std::string& device) {
    Ort::SessionOptions options;
    Ort::ThrowOnError(Ort::GetApi().AddFreeDimensionOverrideByName(
        options, "batch", static_cast<std::int64_t>(batch)));
    if (threads > 0) options.SetIntraOpNumThreads(threads);
    options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_ERROR);
    if (device == kCuda) {
      append_cuda(&options);
    } else if (!device.empty() && device != kCpu) {
      options.AppendExecutionProvider(device, {});
    }
    return options;
  }

  Ort::Env environment_;
  // Run may be called by several threads at once; ONNX Runtime has not declared that const.
  mutable Ort::Session session_;
  std::vector<std::string> names_;
  std::vector<Shape> shapes_;
  bool takes_bytes_ = false;
};

class OrtSession : public Session {
 public:
  explicit OrtSession(const OrtModel& model)
      : session_(model.session()),
        binding_(session_),
        input_(model.shapes().front(), model.takes_bytes()) {
    binding_.BindInput(model.names().front().c_str(), input_.view());
    for (std::size_t i = 1; i < model.names().size(); ++i) {
      const Shape& shape = model.shapes()[i];
      tensors_.emplace_back(shape, false);
      binding_.BindOutput(model.names()[i].c_str(), tensors_.back().view());
      outputs_.push_back({{shape.begin(), shape.end()}, tensors_.back().values()});
    }
  }

  void* input() override { return input_.values(); }
  void infer() override { session_.Run(run_options_, binding_); }
  const std::vector<Output>& outputs() const override { return outputs_; }

 private:
  Ort::Session& session_;
  Ort::RunOptions run_options_;
  Ort::IoBinding binding_;
  Tensor input_;
  std::vector<Tensor> tensors_;
  std::vector<Output> outputs_;
};

std::unique_ptr<Session> OrtModel::make_session() const {
  return std::make_unique<OrtSession>(*this);
}

std::optional<std::string> missing() { return std::nullopt; }

std::shared_ptr<const Model> load(const Bundle& bundle, const Artefact& artefact, int threads,
                                  const std::string& device) {
  return std::make_shared<OrtModel>(bundle, artefact, threads, device);
}

/// The execution providers of this ONNX Runtime by their own names, as targets/onnxruntime.py.
std::vector<std::string> devices() {
  std::vector<std::string> found{kCpu};
  for (const std::string& provider : Ort::GetAvailableProviders()) {
    const std::string name = provider.substr(0, provider.rfind(kProvider));
    if (name != kCpu && name != "Azure") found.push_back(name);  // that one runs nothing here
  }
  return found;
}

std::pair<std::string, std::string> version() { return {"onnxruntime", Ort::GetVersionString()}; }

}  // namespace

const Backend kOnnxRuntime{"onnxruntime", missing, load, version, false, nullptr, devices};

}  // namespace cmt
