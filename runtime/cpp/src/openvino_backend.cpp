#include "openvino_backend.hpp"

#include <algorithm>
#include <openvino/openvino.hpp>

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

class OpenVinoModel : public Model {
 public:
  OpenVinoModel(const Bundle& bundle, const Artefact& artefact, int threads) {
    ov::AnyMap properties(artefact.settings.begin(), artefact.settings.end());
    if (threads > 0) properties[ov::inference_num_threads.name()] = threads;
    compiled_ = core_.compile_model(bundle.path(artefact.file).string(), "CPU", properties);
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
    return {good ? inputs.front().get_shape() : ov::Shape(), bytes, outputs.size(), good};
  }

  ov::Core core_;
  ov::CompiledModel compiled_;
};

}  // namespace

std::shared_ptr<const Model> load_openvino(const Bundle& bundle, const Artefact& artefact,
                                           int threads) {
  return std::make_shared<OpenVinoModel>(bundle, artefact, threads);
}

std::string openvino_version() { return ov::get_openvino_version().buildNumber; }

}  // namespace cmt
