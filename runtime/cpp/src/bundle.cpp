#include "bundle.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmt/error.hpp>
#include <thread>
#include <utility>

#include "files.hpp"
#include "signature.hpp"
#include "strict_json.hpp"

namespace cmt {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kLargestManifest = std::uint64_t{1} << 26;  // as in cmt/strict_json.py
constexpr const char* kSeal = "manifest.json.sha256";
constexpr const char* kSignature = "manifest.json.sig";
constexpr const char* kSigned = "manifest.signed.json";
constexpr std::uint64_t kLongestSeal = 200;           // of a signature too
constexpr const char* kReplacement = ".replacement";  // of bundle/replacing.py

[[noreturn]] void refuse(const std::string& name, const std::string& problem) {
  throw InputError(name.substr(0, 200) + " is not the file of this bundle (" + problem +
                   "): copy the bundle again");
}

/// Whether there is a replacement, made by who owns the bundle or this process; another user may
/// have put one into a folder that many share.
bool has_replacement(const fs::path& folder) {
  struct stat made {};
  struct stat bundle {};
  if (lstat((folder / kReplacement).c_str(), &made) != 0) return false;
  if (stat(folder.c_str(), &bundle) != 0 || !S_ISDIR(made.st_mode)) return false;
  return made.st_uid == bundle.st_uid || made.st_uid == geteuid();
}

/// Where a file is just now: a replacement that is not at its end holds the newer one.
fs::path place_of(const fs::path& folder, const std::string& name) {
  std::error_code error;
  const fs::path replacement = folder / kReplacement;
  const bool newer = has_replacement(folder) && fs::is_regular_file(replacement / name, error);
  return (newer ? replacement : folder) / name;
}

/// A file's own place, if that is in the bundle, links followed.
fs::path inside(const fs::path& folder, const std::string& name) {
  std::error_code error;
  const fs::path root = fs::canonical(folder, error);
  fs::path path = fs::canonical(place_of(folder, name), error);
  if (error) refuse(name, error.message());
  if (std::mismatch(root.begin(), root.end(), path.begin(), path.end()).first != root.end()) {
    throw InputError("'" + name + "' leads out of the bundle: copy the bundle again, links " +
                     "followed");
  }
  if (!fs::is_regular_file(path, error)) refuse(name, "it is no file");
  return path;
}

void check_file(const fs::path& folder, const FileEntry& entry) {
  const fs::path path = inside(folder, entry.path);
  std::error_code error;
  const auto size = fs::file_size(path, error);
  if (error) refuse(entry.path, error.message());
  if (size != entry.bytes) {
    refuse(entry.path, std::to_string(size) + " bytes in place of " + std::to_string(entry.bytes));
  }
  if (sha256_file(path, entry.bytes) != entry.sha256) refuse(entry.path, "its sha256 differs");
}

Voucher read_voucher(const fs::path& folder) {
  std::error_code error;
  if (!fs::is_regular_file(fs::symlink_status(folder / kSignature, error))) {
    throw InputError(folder.string() + " is not signed: get it from whoever holds the key");
  }
  Voucher voucher{read_file(folder / kSignature, kLongestSeal), std::nullopt};
  // Also where it is a link to nothing: that is no early bundle.
  const bool stored =
      fs::symlink_status(folder / kSigned, error).type() != fs::file_type::not_found;
  if (stored) voucher.content = read_file(folder / kSigned, kLargestManifest);
  return voucher;
}

/// What a process that replaces files of the bundle changes step by step.
std::string state_of(const fs::path& folder) {
  std::string state;
  std::error_code error;
  for (fs::recursive_directory_iterator at(folder / kReplacement, error), end; !error && at != end;
       at.increment(error)) {
    state += at->path().string() + '\n';
  }
  for (const char* name : {kManifest, kSeal}) {
    try {
      state += sha256_file(inside(folder, name), kLargestManifest) + '\n';
    } catch (const InputError& problem) {
      state += problem.what();
    }
  }
  return state;
}

}  // namespace

Bundle::Bundle(fs::path folder, const Trust& trust) : folder_(std::move(folder)) {
  constexpr int kMostTries = 100;
  constexpr std::chrono::milliseconds kBetween(20);
  for (int tries = 1;; ++tries) {
    const std::string before = state_of(folder_);
    try {
      open(trust);
      return;
    } catch (const InputError&) {
      // Where nothing has moved meanwhile, the bundle is what it seems to be.
      if (tries == kMostTries || state_of(folder_) == before) throw;
    }
    std::this_thread::sleep_for(kBetween);
  }
}

void Bundle::open(const Trust& trust) {
  std::error_code error;
  if (!fs::is_regular_file(place_of(folder_, kManifest), error)) {
    throw InputError(folder_.string() + " is no bundle: it has no " + kManifest);
  }
  const std::string text = read_file(inside(folder_, kManifest), kLargestManifest);
  manifest_ = parse_manifest(text);
  if (read_file(inside(folder_, kSeal), kLongestSeal) != sha256(text) + "  " + kManifest + "\n") {
    refuse(kManifest, std::string("its sha256 is not that of ") + kSeal);
  }
  if (!trust.key.empty()) {
    verify_signature(text, read_voucher(folder_), trust.key, folder_);
  }
  for (const FileEntry& entry : manifest_.files) check_file(folder_, entry);
  trusts_engines_ = !trust.key.empty() || trust.unsigned_engines;
}

fs::path Bundle::path(const FileEntry& entry) const { return place_of(folder_, entry.path); }

std::string Bundle::read(const FileEntry& entry) const {
  std::string content = read_file(inside(folder_, entry.path), std::min(entry.bytes, kLargestFile));
  if (sha256(content) != entry.sha256) refuse(entry.path, "its sha256 differs");
  return content;
}

}  // namespace cmt
