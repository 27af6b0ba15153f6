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

/// OpenVINO would ask the readers of all frameworks' formats about an IR that is none.
void require_ir(const std::filesystem::path& path, const std::string& name) {
  if (path.extension() != ".xml" || std::ifstream(path).peek() == '<') return;
  throw InputError(name + " is no OpenVINO IR: export the bundle again");
}

class OpenVinoModel : public Model {
 public:
  OpenVinoModel(const Bundle& bundle, const Artefact& artefact, int threads) {
    ov::AnyMap properties(artefact.settings.begin(), artefact.settings.end());
    if (threads > 0) properties[ov::inference_num_threads.name()] = threads;
    require_ir(bundle.path(artefact.file), artefact.file.path);
    compiled_ = core_->compile_model(bundle.path(artefact.file).string(), "CPU", properties);
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

std::optional<std::string> missing() { return std::nullopt; }

std::shared_ptr<const Model> load(const Bundle& bundle, const Artefact& artefact, int threads) {
  return std::make_shared<OpenVinoModel>(bundle, artefact, threads);
}

/// OpenVINO then takes float32 without a word.
std::optional<std::string> computes_in_float32(const Artefact& artefact) {
  const auto hint = artefact.settings.find(ov::hint::inference_precision.name());
  if (hint == artefact.settings.end() || hint->second != "bf16") return std::nullopt;
  const auto known = shared_core()->get_property("CPU", ov::device::capabilities);
  if (std::find(known.begin(), known.end(), "BF16") != known.end()) return std::nullopt;
  return "this CPU has no BF16 and computes it in float32";
}

std::pair<std::string, std::string> version() {
  return {"openvino", ov::get_openvino_version().buildNumber};
}

}  // namespace

const Backend kOpenVino{"openvino", missing, load, version, false, computes_in_float32};

}  // namespace cmt
