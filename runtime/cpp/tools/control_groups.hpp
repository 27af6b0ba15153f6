#pragma once

#include <filesystem>
#include <optional>

namespace cmt::tools {

// What Linux's control groups, which containers and services are, allow a process of the CPUs; as
// targets/control_groups.py. `root` is where /proc and /sys are.

/// How many CPUs' time they allow; nothing without a limit.
std::optional<double> cpu_quota(const std::filesystem::path& root = "/");

/// For how long, in all, they have kept this process's groups from CPUs, in seconds.
double throttled_seconds(const std::filesystem::path& root = "/");

}  // namespace cmt::tools
