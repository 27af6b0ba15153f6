#pragma once

#include <filesystem>

#include "manifest.hpp"

namespace cmt {

/// A bundle whose files are those that were written.
class Bundle {
 public:
  /// Throws InputError that names the file if one is missing, changed or outside the folder.
  explicit Bundle(std::filesystem::path folder);

  const Manifest& manifest() const { return manifest_; }
  std::filesystem::path path(const FileEntry& entry) const;

 private:
  std::filesystem::path folder_;
  Manifest manifest_;
};

}  // namespace cmt
