#include "machine.hpp"

#include <sys/utsname.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <ctime>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>

#include "../src/backend.hpp"

namespace cmt::tools {
namespace {

/// `key : value` of the first processor.
std::string cpu_info(const std::string& key) {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line) && !line.empty();) {
    const std::size_t colon = line.find(':');
    if (line.compare(0, key.size(), key) == 0 && colon != std::string::npos &&
        line.find_first_not_of("\t ", key.size()) == colon) {
      return colon + 2 < line.size() ? line.substr(colon + 2) : "";
    }
  }
  return {};
}

}  // namespace

nlohmann::ordered_json describe_machine() {
  utsname system{};
  uname(&system);
  std::istringstream words(cpu_info("flags") + cpu_info("Features"));
  const std::set<std::string> present{std::istream_iterator<std::string>(words), {}};
  nlohmann::ordered_json flags = nlohmann::ordered_json::array();
  // Those that measure/environment.py looks for, in its order.
  for (const char* flag : {"avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8",
                           "amx_bf16", "asimd", "asimddp", "i8mm", "bf16"}) {
    if (present.count(flag) != 0) flags.push_back(flag);
  }
  const std::string model = cpu_info("model name");
  const double bytes =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
  nlohmann::ordered_json packages{{"cmt_runtime", CMT_VERSION}};
  for (const auto& [name, version] : backend_versions()) packages[name] = version;
  return {{"python", nullptr},
          {"platform", std::string(system.sysname) + "-" + system.release + "-" + system.machine},
          {"cpu", model.empty() ? system.machine : model},
          {"cpu_flags", flags},
          {"cores", std::thread::hardware_concurrency()},
          {"memory_gb", std::round(bytes / 1e8) / 10},
          {"gpu", nullptr},
          {"seed", 0},
          {"packages", packages}};
}

std::string host_name() {
  utsname system{};
  uname(&system);
  return system.nodename;
}

std::string timestamp() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  std::array<char, 32> text{};
  std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%S+00:00", &utc);
  return text.data();
}

}  // namespace cmt::tools
