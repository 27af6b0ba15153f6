#pragma once

#include "backend.hpp"

namespace cmt {

std::shared_ptr<const Model> load_openvino(const Bundle& bundle, const Artefact& artefact,
                                           int threads);
std::string openvino_version();

}  // namespace cmt
