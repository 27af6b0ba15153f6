// A TensorRT and a CUDA for tests on machines without: the GPU's memory is the
// host's, and an engine is a line of text, "ENGINE batch height width classes",
// whose answer for class c
// is c, or no number where the line ends with "nan".
//
// STUB_GPUS=0 takes the GPU away. What the library is asked to do with engines
// is written to the file that STUB_LOG names, a line each.

#include <NvInferRuntime.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <string>

namespace {

using nvinfer1::Dims;

void note(const std::string& line) {
  if (const char* path = std::getenv("STUB_LOG"))
    std::ofstream(path, std::ios::app) << line << '\n';
}

struct Shape {
  int batch = 0;
  int height = 0;
  int width = 0;
  int classes = 0;
  bool answers = true;
};

class Context : public nvinfer1::IExecutionContext {
 public:
  explicit Context(Shape shape) : shape_(shape) {}
  bool setInputShape(const char* /*name*/, const Dims& dims) noexcept override {
    shape_.batch = static_cast<int>(dims.d[0]);
    return true;
  }
  bool setTensorAddress(const char* name, void* data) noexcept override {
    if (std::strcmp(name, "logits") == 0) logits_ = static_cast<float*>(data);
    return true;
  }
  bool enqueueV3(cudaStream_t /*stream*/) noexcept override {
    for (int i = 0; i < shape_.batch * shape_.classes; ++i) {
      logits_[i] = shape_.answers ? static_cast<float>(i % shape_.classes) : NAN;
    }
    return true;
  }

 private:
  Shape shape_;
  float* logits_ = nullptr;
};

class Engine : public nvinfer1::ICudaEngine {
 public:
  explicit Engine(Shape shape) : shape_(shape) {}
  std::int32_t getNbIOTensors() const noexcept override { return 2; }
  const char* getIOTensorName(std::int32_t index) const noexcept override {
    return index == 0 ? "images" : "logits";
  }
  nvinfer1::TensorIOMode getTensorIOMode(const char* name) const noexcept override {
    return is_input(name) ? nvinfer1::TensorIOMode::kINPUT : nvinfer1::TensorIOMode::kOUTPUT;
  }
  Dims getTensorShape(const char* name) const noexcept override {
    if (is_input(name)) return {4, {shape_.batch, 3, shape_.height, shape_.width}};
    return {2, {shape_.batch, shape_.classes}};
  }
  nvinfer1::DataType getTensorDataType(const char* /*name*/) const noexcept override {
    return nvinfer1::DataType::kFLOAT;
  }
  nvinfer1::TensorFormat getTensorFormat(const char* /*name*/) const noexcept override {
    return nvinfer1::TensorFormat::kLINEAR;
  }
  nvinfer1::IExecutionContext* createExecutionContext() noexcept override {
    return new Context(shape_);
  }

 private:
  static bool is_input(const char* name) { return std::strcmp(name, "images") == 0; }
  Shape shape_;
};

class Runtime : public nvinfer1::IRuntime {
 public:
  explicit Runtime(nvinfer1::ILogger& logger) : logger_(logger) {}
  void setEngineHostCodeAllowed(bool allowed) noexcept override {
    note(std::string("host code ") + (allowed ? "allowed" : "forbidden"));
  }
  void setDLACore(std::int32_t core) noexcept override { note("core " + std::to_string(core)); }
  nvinfer1::ICudaEngine* deserializeCudaEngine(const void* plan,
                                               std::size_t size) noexcept override {
    note("deserialised");
    Shape shape;
    const std::string text(static_cast<const char*>(plan), size);
    if (std::sscanf(text.c_str(), "ENGINE %d %d %d %d", &shape.batch, &shape.height, &shape.width,
                    &shape.classes) == 4) {
      shape.answers = text.find("nan") == std::string::npos;
      return new Engine(shape);
    }
    logger_.log(nvinfer1::ILogger::Severity::kERROR, "this is no engine");
    return nullptr;
  }

 private:
  nvinfer1::ILogger& logger_;
};

}  // namespace

nvinfer1::IRuntime* nvinfer1::createInferRuntime(ILogger& logger) noexcept {
  return new Runtime(logger);
}

extern "C" {

std::int32_t getInferLibMajorVersion() noexcept { return 10; }
std::int32_t getInferLibMinorVersion() noexcept { return 3; }
std::int32_t getInferLibPatchVersion() noexcept { return 0; }

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorNoDevice ? "no CUDA-capable device is detected" : "no error";
}
cudaError_t cudaGetDeviceCount(int* count) {
  const char* gpus = std::getenv("STUB_GPUS");
  *count = gpus == nullptr ? 1 : std::atoi(gpus);
  return *count > 0 ? cudaSuccess : cudaErrorNoDevice;
}
cudaError_t cudaMalloc(void** memory, std::size_t size) {
  *memory = std::malloc(size);
  return *memory != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaMallocHost(void** memory, std::size_t size) { return cudaMalloc(memory, size); }
cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) { return cudaFree(memory); }
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t size, cudaMemcpyKind /*kind*/,
                            cudaStream_t /*stream*/) {
  std::memcpy(to, from, size);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int /*flags*/) {
  *stream = nullptr;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t /*stream*/) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t /*stream*/) { return cudaSuccess; }

}  // extern "C"
