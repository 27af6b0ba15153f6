#include <algorithm>
#include <cmt/error.hpp>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <openvino/openvino.hpp>

#include "backends.hpp"

namespace cmt {
namespace {

class OpenVinoSession : public Session {
 public:
  OpenVinoSession(ov::InferRequest request, std::size_t outputs) : request_(std::move(request)) {
    input_ = request_.get_input_tensor();
    for (std::size_t i = 0; i < outputs; ++i) {
      // Shapes are fixed, so the tensors stay the same.
      tensors_.push_back(request_.get_output_tensor(i));
      outputs_.push_back({tensors_.back().get_shape(), tensors_.back().data<const float>()});
    }
  }

  void* input() override { return input_.data(); }
  void infer() override { request_.infer(); }
  const std::vector<Output>& outputs() const override { return outputs_; }

 private:
  ov::InferRequest request_;
  ov::Tensor input_;
  std::vector<ov::Tensor> tensors_;
  std::vector<Output> outputs_;
};

/// One for all models at a time. Each that compiles replaces the thread's alternative signal stack
/// and puts back the one it found when it goes: of two that overlap, the second would put back the
/// first's, which is freed by then, and the next signal would crash the program.
std::shared_ptr<ov::Core> shared_core() {
  static std::mutex mutex;
  static std::weak_ptr<ov::Core> known;
  const std::lock_guard<std::mutex> lock(mutex);
  auto core = known.lock();
  if (core == nullptr) known = core = std::make_shared<ov::Core>();
  return core;
}

/// The device of OpenVINO's choice.
constexpr const char* kAuto = "AUTO";

bool has(const std::string& device, const std::string& capability) {
  const auto known = shared_core()->get_property(device, ov::device::capabilities);
  return std::find(known.begin(), known.end(), capability) != known.end();
}

bool asks_for_bf16(const Artefact& artefact) {
  const auto hint = artefact.settings.find(ov::hint::inference_precision.name());
  return hint != artefact.settings.end() && hint->second == "bf16";
}

/// The settings that a device takes, by the rules of `_properties` in targets/openvino.py.
ov::AnyMap properties_for(const Artefact& artefact, int threads, const std::string& device) {
  ov::AnyMap asked(artefact.settings.begin(), artefact.settings.end());
  if (threads > 0) asked[ov::inference_num_threads.name()] = threads;
  if (device == kCpu) return asked;
  if (asks_for_bf16(artefact) && !has(device, "BF16")) {
    asked[ov::hint::inference_precision.name()] = std::string("f32");
  }
  if (device == kAuto) {
    asked["ENABLE_STARTUP_FALLBACK"] = false;
    asked["ENABLE_RUNTIME_FALLBACK"] = false;
    return asked;
  }
  ov::AnyMap taken;
  for (const auto& property : shared_core()->get_property(device, ov::supported_properties)) {
    const auto found = asked.find(property);
    if (found != asked.end() && property.is_mutable()) taken.insert(*found);
  }
  return taken;
}

/// OpenVINO would ask the readers of all frameworks' formats about an IR that is none.
void require_ir(const std::filesystem::path& path, const std::string& name) {
  if (path.extension() != ".xml" || std::ifstream(path).peek() == '<') return;
  throw InputError(name + " is no OpenVINO IR: export the bundle again");
}

class OpenVinoModel : public Model {
 public:
  OpenVinoModel(const Bundle& bundle, const Artefact& artefact, int threads,
                const std::string& device) {
    require_ir(bundle.path(artefact.file), artefact.file.path);
    compiled_ = core_->compile_model(bundle.path(artefact.file).string(), device,
                                     properties_for(artefact, threads, device));
    check_signature(bundle.manifest(), artefact, signature());
  }

  std::unique_ptr<Session> make_session() const override {
    // Making a request only reads the compiled model; OpenVINO has not declared that const.
    auto compiled = compiled_;
    return std::make_unique<OpenVinoSession>(compiled.create_infer_request(),
                                             compiled.outputs().size());
  }

 private:
  Signature signature() const {
    const auto is_fixed = [](const ov::Output<const ov::Node>& port, ov::element::Type type) {
      return port.get_partial_shape().is_static() && port.get_element_type() == type;
    };
    const auto& inputs = compiled_.inputs();
    const auto& outputs = compiled_.outputs();
    const bool bytes = inputs.size() == 1 && is_fixed(inputs.front(), ov::element::u8);
    const bool good =
        (bytes || (inputs.size() == 1 && is_fixed(inputs.front(), ov::element::f32))) &&
        std::all_of(outputs.begin(), outputs.end(),
                    [&](const auto& port) { return is_fixed(port, ov::element::f32); });
    if (!good) return {};
    std::vector<std::vector<std::size_t>> shapes;
    shapes.reserve(outputs.size());
    for (const auto& port : outputs) shapes.push_back(port.get_shape());
    return {inputs.front().get_shape(), bytes, shapes, good};
  }

  std::shared_ptr<ov::Core> core_ = shared_core();
  ov::CompiledModel compiled_;
};

std::string or_cpu(const std::string& device) { return device.empty() ? kCpu : device; }

std::optional<std::string> missing() { return std::nullopt; }

std::shared_ptr<const Model> load(const Bundle& bundle, const Artefact& artefact, int threads,
                                  const std::string& device) {
  return std::make_shared<OpenVinoModel>(bundle, artefact, threads, or_cpu(device));
}

/// OpenVINO then takes another one without a word.
std::optional<std::string> computes_otherwise_on(const Artefact& artefact,
                                                 const std::string& asked) {
  const std::string device = or_cpu(asked);
  if (asks_for_bf16(artefact) && !has(device, "BF16")) {
    return "this " + device + " has no BF16 and computes it in float32";
  }
  if (device != kCpu && !has(device, "FP32")) {
    return "this " + device + " has no float32 and computes in FP16";
  }
  return std::nullopt;
}

/// As `devices` of targets/openvino.py.
std::vector<std::string> devices() {
  std::vector<std::string> found{kCpu};
  const auto add = [&](const std::string& name) {
    if (std::find(found.begin(), found.end(), name) == found.end()) found.push_back(name);
  };
  const auto available = shared_core()->get_available_devices();
  for (const std::string& name : available) add(name);
  for (const std::string& name : available) add(name.substr(0, name.find('.')));
  found.emplace_back(kAuto);
  return found;
}

std::pair<std::string, std::string> version() {
  return {"openvino", ov::get_openvino_version().buildNumber};
}

}  // namespace

const Backend kOpenVino{"openvino", missing, load, version, false, computes_otherwise_on, devices};

}  // namespace cmt
