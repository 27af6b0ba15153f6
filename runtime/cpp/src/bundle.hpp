#pragma once

#include <cmt/classifier.hpp>
#include <filesystem>

#include "manifest.hpp"

namespace cmt {

/// A bundle whose files are those that were written.
class Bundle {
 public:
  /// Throws InputError that names the file if one is missing, changed or outside the folder, and
  /// unless the bundle is signed where `trust` has a key. While another process replaces files of
  /// it, the bundle is read again; what one that was killed left is read from where it lies.
  explicit Bundle(std::filesystem::path folder, const Trust& trust = {});

  const Manifest& manifest() const { return manifest_; }

  /// Whether native code in it may be run.
  bool trusts_engines() const { return trusts_engines_; }

  std::filesystem::path path(const FileEntry& entry) const;

  /// The content of a file, which is still the one that was written; throws InputError.
  std::string read(const FileEntry& entry) const;

 private:
  void open(const Trust& trust);

  std::filesystem::path folder_;
  Manifest manifest_;
  bool trusts_engines_ = false;
};

}  // namespace cmt
