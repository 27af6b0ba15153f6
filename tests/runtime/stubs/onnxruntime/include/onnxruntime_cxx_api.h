// What onnxruntime_backend.cpp takes of ONNX Runtime's C++ API, over the library's own C functions:
// wheels have the library and no headers. The C API is a table whose places never change (its
// header says so); those here are of version 21.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

struct OrtStatus;
struct OrtEnv;
struct OrtSessionOptions;
struct OrtSession;
struct OrtAllocator;
struct OrtTypeInfo;
struct OrtTensorTypeAndShapeInfo;
struct OrtMemoryInfo;
struct OrtValue;
struct OrtIoBinding;
struct OrtRunOptions;
struct OrtCUDAProviderOptionsV2;
enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING = 2, ORT_LOGGING_LEVEL_ERROR = 3 };
enum OrtAllocatorType { OrtDeviceAllocator = 0 };
enum OrtMemType { OrtMemTypeDefault = 0 };
enum ONNXTensorElementDataType {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 = 2
};

struct OrtApiBase {
  const void* const* (*GetApi)(std::uint32_t version);
  const char* (*GetVersionString)();
};
extern "C" const OrtApiBase* OrtGetApiBase() noexcept;

namespace Ort {

template <typename R, typename... A>
R call(std::size_t place, A... arguments) {
  const void* function = OrtGetApiBase()->GetApi(21)[place];
  return reinterpret_cast<R (*)(A...)>(const_cast<void*>(function))(arguments...);
}

struct Exception : std::exception {
  explicit Exception(std::string words) : words_(std::move(words)) {}
  const char* what() const noexcept override { return words_.c_str(); }

 private:
  std::string words_;
};

inline void ThrowOnError(OrtStatus* status) {
  if (status == nullptr) return;
  const std::string words = call<const char*>(2, const_cast<const OrtStatus*>(status));
  call<void>(93, status);
  throw Exception(words);
}

template <typename... A>
void checked(std::size_t place, A... arguments) {
  ThrowOnError(call<OrtStatus*>(place, arguments...));
}

/// What the library makes and takes back.
template <typename T, std::size_t kRelease>
struct Handle {
  operator T*() const { return held_.get(); }

 protected:
  struct Release {
    void operator()(T* one) const { call<void>(kRelease, one); }
  };
  template <typename... A>
  void make(std::size_t place, A... arguments) {
    T* made = nullptr;
    checked(place, arguments..., &made);
    held_.reset(made);
  }
  std::unique_ptr<T, Release> held_;
};

struct Api {
  OrtStatus* AddFreeDimensionOverrideByName(OrtSessionOptions* options, const char* name,
                                            std::int64_t size) const {
    return call<OrtStatus*>(124, options, name, size);
  }
  OrtStatus* CreateCUDAProviderOptions(OrtCUDAProviderOptionsV2** made) const {
    return call<OrtStatus*>(205, made);
  }
  void ReleaseCUDAProviderOptions(OrtCUDAProviderOptionsV2* options) const {
    call<void>(208, options);
  }
};
inline Api GetApi() { return {}; }
inline std::string GetVersionString() { return OrtGetApiBase()->GetVersionString(); }

inline std::vector<std::string> GetAvailableProviders() {
  char** names = nullptr;
  int count = 0;
  checked(125, &names, &count);
  std::vector<std::string> found(names, names + count);
  checked(126, names, count);
  return found;
}

struct Env : Handle<OrtEnv, 92> {
  Env() { make(3, ORT_LOGGING_LEVEL_WARNING, ""); }
  void DisableTelemetryEvents() { checked(6, const_cast<const OrtEnv*>(held_.get())); }
};

struct SessionOptions : Handle<OrtSessionOptions, 100> {
  SessionOptions() { make(10); }
  void SetIntraOpNumThreads(int threads) { checked(24, held_.get(), threads); }
  void SetLogSeverityLevel(int level) { checked(22, held_.get(), level); }
  void AppendExecutionProvider(const std::string& name,
                               const std::unordered_map<std::string, std::string>& /*none*/) {
    const char* const* none = nullptr;
    checked(216, held_.get(), name.c_str(), none, none, std::size_t{0});
  }
  void AppendExecutionProvider_CUDA_V2(const OrtCUDAProviderOptionsV2& options) {
    checked(204, held_.get(), &options);
  }
};

struct AllocatorWithDefaultOptions {
  AllocatorWithDefaultOptions() { checked(78, &held_); }
  operator OrtAllocator*() const { return held_; }

 private:
  OrtAllocator* held_ = nullptr;
};

struct Freed {
  OrtAllocator* by;
  void operator()(char* text) const { checked(76, by, static_cast<void*>(text)); }
};
using AllocatedStringPtr = std::unique_ptr<char, Freed>;

struct TensorTypeAndShapeInfo {
  const OrtTensorTypeAndShapeInfo* held;
  std::vector<std::int64_t> GetShape() const {
    std::size_t rank = 0;
    checked(61, held, &rank);
    std::vector<std::int64_t> shape(rank);
    checked(62, held, shape.data(), rank);
    return shape;
  }
  ONNXTensorElementDataType GetElementType() const {
    ONNXTensorElementDataType type{};
    checked(60, held, &type);
    return type;
  }
};

struct TypeInfo : Handle<OrtTypeInfo, 98> {
  TypeInfo(std::size_t place, const OrtSession* session, std::size_t i) { make(place, session, i); }
  TensorTypeAndShapeInfo GetTensorTypeAndShapeInfo() const {
    const OrtTensorTypeAndShapeInfo* tensor = nullptr;
    checked(55, const_cast<const OrtTypeInfo*>(held_.get()), &tensor);
    return {tensor};
  }
};

struct MemoryInfo : Handle<OrtMemoryInfo, 94> {
  static MemoryInfo CreateCpu(OrtAllocatorType allocator, OrtMemType memory) {
    MemoryInfo info;
    info.make(69, allocator, memory);
    return info;
  }
};

struct Value : Handle<OrtValue, 96> {
  static Value CreateTensor(const OrtMemoryInfo* memory, void* data, std::size_t bytes,
                            const std::int64_t* shape, std::size_t rank,
                            ONNXTensorElementDataType type) {
    Value value;
    value.make(49, memory, data, bytes, shape, rank, type);
    return value;
  }
};

struct RunOptions : Handle<OrtRunOptions, 97> {
  RunOptions() { make(39); }
};

struct Session;

struct IoBinding : Handle<OrtIoBinding, 135> {
  explicit IoBinding(Session& session);
  void BindInput(const char* name, const Value& value) {
    checked(136, held_.get(), name, const_cast<const OrtValue*>(static_cast<OrtValue*>(value)));
  }
  void BindOutput(const char* name, const Value& value) {
    checked(137, held_.get(), name, const_cast<const OrtValue*>(static_cast<OrtValue*>(value)));
  }
};

struct Session : Handle<OrtSession, 95> {
  Session(const Env& env, const char* path, const SessionOptions& options) {
    make(7, const_cast<const OrtEnv*>(static_cast<OrtEnv*>(env)), path,
         const_cast<const OrtSessionOptions*>(static_cast<OrtSessionOptions*>(options)));
  }
  std::size_t GetInputCount() const { return count(30); }
  std::size_t GetOutputCount() const { return count(31); }
  AllocatedStringPtr GetInputNameAllocated(std::size_t i, OrtAllocator* by) const {
    return name(36, i, by);
  }
  AllocatedStringPtr GetOutputNameAllocated(std::size_t i, OrtAllocator* by) const {
    return name(37, i, by);
  }
  TypeInfo GetInputTypeInfo(std::size_t i) const { return {33, held_.get(), i}; }
  TypeInfo GetOutputTypeInfo(std::size_t i) const { return {34, held_.get(), i}; }
  void Run(const RunOptions& options, const IoBinding& binding) {
    checked(133, held_.get(), const_cast<const OrtRunOptions*>(static_cast<OrtRunOptions*>(options)),
            const_cast<const OrtIoBinding*>(static_cast<OrtIoBinding*>(binding)));
  }

 private:
  std::size_t count(std::size_t place) const {
    std::size_t found = 0;
    checked(place, const_cast<const OrtSession*>(held_.get()), &found);
    return found;
  }
  AllocatedStringPtr name(std::size_t place, std::size_t i, OrtAllocator* by) const {
    char* text = nullptr;
    checked(place, const_cast<const OrtSession*>(held_.get()), i, by, &text);
    return {text, {by}};
  }
};

inline IoBinding::IoBinding(Session& session) { make(134, static_cast<OrtSession*>(session)); }

}  // namespace Ort
