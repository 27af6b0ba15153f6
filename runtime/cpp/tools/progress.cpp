#include "progress.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <cmt/error.hpp>
#include <cstdlib>
#include <fstream>

#include "../src/files.hpp"

namespace cmt::tools {
namespace {

namespace fs = std::filesystem;

/// As `cache_folder` of cmt/files.py.
fs::path cache_folder() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  if (cache != nullptr && *cache != '\0') return fs::path(cache) / "cmt-export";
  return fs::path(home == nullptr ? "." : home) / ".cache" / "cmt-export";
}

bool is_own_folder(const fs::path& path) {
  struct stat status {};
  return lstat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode) && status.st_uid == geteuid();
}

}  // namespace

Progress::Progress(const std::string& identity) {
  const fs::path folder = cache_folder() / "answers" / "c++";
  std::error_code error;
  fs::create_directories(folder, error);
  if (!is_own_folder(folder) || access(folder.c_str(), W_OK) != 0) {
    throw InputError("cannot keep answers in " + folder.string() +
                     ": set XDG_CACHE_HOME to a folder of yours");
  }
  fs::permissions(folder, fs::perms::owner_all, error);
  path_ = folder / (sha256(identity) + ".json");
}

nlohmann::ordered_json Progress::read() const {
  std::ifstream file(path_);
  return file ? nlohmann::ordered_json::parse(file, nullptr, false) : nullptr;
}

void Progress::write(const nlohmann::ordered_json& found) const {
  const fs::path partial = path_.string() + ".partial";
  std::ofstream file(partial, std::ios::trunc);
  file << found.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace) << std::flush;
  if (!file) throw MachineError("cannot write " + partial.string() + ": free space there");
  file.close();
  fs::rename(partial, path_);
}

void Progress::remove() const {
  std::error_code error;
  fs::remove(path_, error);
}

}  // namespace cmt::tools
