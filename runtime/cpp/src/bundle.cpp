#include "bundle.hpp"

#include <algorithm>
#include <cmt/error.hpp>
#include <utility>

#include "files.hpp"
#include "strict_json.hpp"

namespace cmt {
namespace {

constexpr std::uint64_t kLargestManifest = std::uint64_t{1} << 26;  // as in cmt/strict_json.py
constexpr const char* kSeal = "manifest.json.sha256";

[[noreturn]] void refuse(const std::string& name, const std::string& problem) {
  throw InputError(name + " is not the file of this bundle (" + problem +
                   "): copy the bundle again");
}

/// A file's own place, if that is in the bundle, links followed.
std::filesystem::path inside(const std::filesystem::path& folder, const std::string& name) {
  std::error_code error;
  const auto root = std::filesystem::canonical(folder, error);
  auto path = std::filesystem::canonical(folder / name, error);
  if (error) refuse(name, error.message());
  if (std::mismatch(root.begin(), root.end(), path.begin(), path.end()).first != root.end()) {
    throw InputError("'" + name + "' leads out of the bundle: copy the bundle again, links " +
                     "followed");
  }
  if (!std::filesystem::is_regular_file(path, error)) refuse(name, "it is no file");
  return path;
}

void check_file(const std::filesystem::path& folder, const FileEntry& entry) {
  const auto path = inside(folder, entry.path);
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error) refuse(entry.path, error.message());
  if (size != entry.bytes) {
    refuse(entry.path, std::to_string(size) + " bytes in place of " + std::to_string(entry.bytes));
  }
  if (sha256_file(path, entry.bytes) != entry.sha256) refuse(entry.path, "its sha256 differs");
}

}  // namespace

Bundle::Bundle(std::filesystem::path folder) : folder_(std::move(folder)) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(folder_ / kManifest, error)) {
    throw InputError(folder_.string() + " is no bundle: it has no " + kManifest);
  }
  const std::string text = read_file(inside(folder_, kManifest), kLargestManifest);
  manifest_ = parse_manifest(text);
  if (read_file(inside(folder_, kSeal), kLargestManifest) !=
      sha256(text) + "  " + kManifest + "\n") {
    refuse(kManifest, std::string("its sha256 is not that of ") + kSeal);
  }
  for (const FileEntry& entry : manifest_.files) check_file(folder_, entry);
}

std::filesystem::path Bundle::path(const FileEntry& entry) const { return folder_ / entry.path; }

}  // namespace cmt
