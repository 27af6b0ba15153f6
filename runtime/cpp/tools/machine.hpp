#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>

namespace cmt::tools {

/// The report's `environment` of this machine; what is Python's alone is null. `root` is where its
/// /proc is.
nlohmann::ordered_json describe_machine(const std::filesystem::path& root = "/");
std::string host_name();

/// Now, ISO 8601 in UTC.
std::string timestamp();

}  // namespace cmt::tools
