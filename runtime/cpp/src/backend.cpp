#include "backend.hpp"

#include <cmt/error.hpp>

#ifdef CMT_WITH_OPENVINO
#include "openvino_backend.hpp"
#endif

namespace cmt {

std::optional<std::string> missing_backend(const std::string& target) {
#ifdef CMT_WITH_OPENVINO
  if (target == "openvino") return std::nullopt;
#endif
  return "cmt_runtime was built without a backend for " + target;
}

std::shared_ptr<const Model> load_model(const Bundle& bundle, const Artefact& artefact,
                                        int threads) {
#ifdef CMT_WITH_OPENVINO
  if (artefact.target == "openvino") return load_openvino(bundle, artefact, threads);
#endif
  throw InputError(artefact.file.path + ": " + *missing_backend(artefact.target));
}

std::vector<std::pair<std::string, std::string>> backend_versions() {
  std::vector<std::pair<std::string, std::string>> versions;
#ifdef CMT_WITH_OPENVINO
  versions.emplace_back("openvino", openvino_version());
#endif
  return versions;
}

}  // namespace cmt
