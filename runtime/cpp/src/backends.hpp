#pragma once

#include "backend.hpp"

namespace cmt {

/// A runtime, as its own source file describes it.
struct Backend {
  const char* target;  ///< whose files it runs
  /// Why this machine cannot run them; nothing where it can.
  std::optional<std::string> (*missing)();
  /// `device` is one of `devices`, or empty for the default.
  std::shared_ptr<const Model> (*load)(const Bundle& bundle, const Artefact& artefact, int threads,
                                       const std::string& device);
  /// Name and version of the library.
  std::pair<std::string, std::string> (*version)();
  bool runs_native_code = false;  ///< that its files bring, each for one library
  /// How a device computes a file where that is not as its settings say; none where it always is.
  std::optional<std::string> (*computes_otherwise)(const Artefact& artefact,
                                                   const std::string& device) = nullptr;
  /// Names of what its files run on here, the CPU first; none where there is no choice.
  std::vector<std::string> (*devices)() = nullptr;
};

// Each exists in builds with its CMT_WITH_ alone.
extern const Backend kOpenVino;
extern const Backend kOnnxRuntime;
extern const Backend kTensorRt;

}  // namespace cmt
