#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>

namespace cmt::tools {

/// Logical CPUs that this process may keep busy: a part of a CPU's time gets no thread of its own.
/// `root` is where /proc and /sys are.
int usable_cores(const std::filesystem::path& root = "/");

/// The report's `environment` of this machine; what is Python's alone is null.
nlohmann::ordered_json describe_machine(const std::filesystem::path& root = "/");
std::string host_name();

/// Now, ISO 8601 in UTC.
std::string timestamp();

}  // namespace cmt::tools
