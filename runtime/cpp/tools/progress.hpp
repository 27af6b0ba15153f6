#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

namespace cmt::tools {

/// What a run has found so far, in the user's cache: one that is killed goes on from there.
class Progress {
 public:
  /// `identity` is of everything that decides what is found. Throws InputError where nothing can be
  /// kept.
  explicit Progress(const std::string& identity);

  /// What an earlier run of the same identity kept; null where there is nothing whole.
  nlohmann::ordered_json read() const;
  void write(const nlohmann::ordered_json& found) const;
  void remove() const;

 private:
  std::filesystem::path path_;
};

}  // namespace cmt::tools
