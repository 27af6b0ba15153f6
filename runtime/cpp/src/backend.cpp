#include "backend.hpp"

#include <cmt/error.hpp>

#ifdef CMT_WITH_OPENVINO
#include "openvino_backend.hpp"
#endif
#ifdef CMT_WITH_ONNXRUNTIME
#include "onnxruntime_backend.hpp"
#endif
#ifdef CMT_WITH_TENSORRT
#include "tensorrt_backend.hpp"
#endif

namespace cmt {

void check_signature(const Manifest& manifest, const Artefact& artefact,
                     const Signature& signature) {
  const Preprocessing& p = manifest.preprocessing;
  const auto height = static_cast<std::size_t>(p.height);
  const auto width = static_cast<std::size_t>(p.width);
  const std::vector<std::size_t> planes{manifest.batch, 3, height, width};
  const std::vector<std::size_t> pixels{manifest.batch, height, width, 3};
  if (!signature.known || signature.takes_bytes != p.in_graph ||
      signature.input != (p.in_graph ? pixels : planes) ||
      signature.outputs != manifest.outputs.size()) {
    throw InputError(artefact.file.path + " does not have the manifest's input and outputs: " +
                     "export the bundle again");
  }
}

std::optional<std::string> missing_backend(const std::string& target) {
#ifdef CMT_WITH_OPENVINO
  if (target == "openvino") return std::nullopt;
#endif
#ifdef CMT_WITH_ONNXRUNTIME
  if (target == "onnxruntime") return std::nullopt;
#endif
#ifdef CMT_WITH_TENSORRT
  if (target == "tensorrt") return missing_cuda_device();
#endif
  return "cmt_runtime was built without a backend for " + target;
}

std::shared_ptr<const Model> load_model(const Bundle& bundle, const Artefact& artefact,
                                        int threads) {
#ifdef CMT_WITH_OPENVINO
  if (artefact.target == "openvino") return load_openvino(bundle, artefact, threads);
#endif
#ifdef CMT_WITH_ONNXRUNTIME
  if (artefact.target == "onnxruntime") return load_onnxruntime(bundle, artefact, threads);
#endif
#ifdef CMT_WITH_TENSORRT
  if (artefact.target == "tensorrt") return load_tensorrt(bundle, artefact);
#endif
  throw InputError(artefact.file.path + ": " + *missing_backend(artefact.target));
}

std::vector<std::pair<std::string, std::string>> backend_versions() {
  std::vector<std::pair<std::string, std::string>> versions;
#ifdef CMT_WITH_OPENVINO
  versions.emplace_back("openvino", openvino_version());
#endif
#ifdef CMT_WITH_ONNXRUNTIME
  versions.emplace_back("onnxruntime", onnxruntime_version());
#endif
#ifdef CMT_WITH_TENSORRT
  versions.push_back(tensorrt_version());
#endif
  return versions;
}

}  // namespace cmt
