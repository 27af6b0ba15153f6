#pragma once

#include "backend.hpp"

namespace cmt {

/// Why this machine cannot run engines (no driver, no GPU); nothing where it can.
std::optional<std::string> missing_cuda_device();

std::shared_ptr<const Model> load_tensorrt(const Bundle& bundle, const Artefact& artefact);

/// `tensorrt` or `tensorrt_rtx`, and the version of the library that is loaded.
std::pair<std::string, std::string> tensorrt_version();

}  // namespace cmt
