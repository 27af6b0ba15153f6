#pragma once

#include "backend.hpp"

namespace cmt {

std::shared_ptr<const Model> load_onnxruntime(const Bundle& bundle, const Artefact& artefact,
                                              int threads);
std::string onnxruntime_version();

}  // namespace cmt
