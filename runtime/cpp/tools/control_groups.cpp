#include "control_groups.hpp"

#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

namespace cmt::tools {
namespace {

namespace fs = std::filesystem;

/// A group's folder and those above it, down from its mount: a container may see that alone.
void add_downwards(const fs::path& mount, const fs::path& group, std::vector<fs::path>& folders) {
  folders.push_back(mount);
  const bool outside = std::find(group.begin(), group.end(), "..") != group.end();
  fs::path folder = mount;
  for (const fs::path& part : outside ? fs::path() : group.relative_path()) {
    folder /= part;
    folders.push_back(folder);
  }
}

/// Those of the groups that limit this process's CPUs.
std::vector<fs::path> folders_of(const fs::path& root) {
  const fs::path mounts = root / "sys/fs/cgroup";
  std::ifstream groups(root / "proc/self/cgroup");
  std::vector<fs::path> folders;
  std::string number;
  std::string controllers;
  for (std::string group; std::getline(groups, number, ':') &&
                          std::getline(groups, controllers, ':') && std::getline(groups, group);) {
    if (controllers.empty()) {
      add_downwards(mounts, group, folders);
      add_downwards(mounts / "unified", group, folders);
    } else if (("," + controllers + ",").find(",cpu,") != std::string::npos) {
      add_downwards(mounts / "cpu", group, folders);
    }
  }
  return folders;
}

/// What the group in a folder may use of the CPUs: cpu.max of cgroup v2, cpu.cfs_*_us of v1.
std::optional<double> limit_of(const fs::path& folder) {
  std::ifstream both(folder / "cpu.max");
  std::ifstream allowed(folder / "cpu.cfs_quota_us");
  std::ifstream every(folder / "cpu.cfs_period_us");
  double quota = 0;
  double period = 0;
  const bool found =
      both.is_open() ? bool(both >> quota >> period) : bool(allowed >> quota && every >> period);
  if (!found || quota < 0) return std::nullopt;  // "max" and -1 are none
  return quota / period;
}

/// By cpu.stat, which is in microseconds in cgroup v2 and in nanoseconds in v1.
double throttled_in(const fs::path& folder) {
  std::ifstream file(folder / "cpu.stat");
  double seconds = 0;
  double value = 0;
  for (std::string name; file >> name >> value;) {
    if (name == "throttled_usec") seconds += value / 1e6;
    if (name == "throttled_time") seconds += value / 1e9;
  }
  return seconds;
}

}  // namespace

std::optional<double> cpu_quota(const fs::path& root) {
  std::optional<double> least;
  for (const fs::path& folder : folders_of(root)) {
    const auto limit = limit_of(folder);
    if (limit && (!least || *limit < *least)) least = limit;
  }
  return least;
}

double throttled_seconds(const fs::path& root) {
  double most = 0;
  for (const fs::path& folder : folders_of(root)) most = std::max(most, throttled_in(folder));
  return most;
}

}  // namespace cmt::tools
