#include "machine.hpp"

#include <dlfcn.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <ctime>
#include <fstream>
#include <iterator>
#include <memory>
#include <set>
#include <sstream>
#include <thread>

#include "../src/backend.hpp"
#include "../src/text.hpp"
#include "control_groups.hpp"

namespace cmt::tools {
namespace {

namespace fs = std::filesystem;

/// `key : value` of the first processor.
std::string cpu_info(const fs::path& root, const std::string& key) {
  std::ifstream file(root / "proc/cpuinfo");
  for (std::string line; std::getline(file, line) && !line.empty();) {
    const std::size_t colon = line.find(':');
    if (line.compare(0, key.size(), key) == 0 && colon != std::string::npos &&
        line.find_first_not_of("\t ", key.size()) == colon) {
      return colon + 2 < line.size() ? line.substr(colon + 2) : "";
    }
  }
  return {};
}

/// The processor's name; on a board whose kernel gives none, or only an architecture's such as
/// "ARMv8 Processor rev 1 (v8l)", the board's.
std::string cpu_name(const fs::path& root, const char* architecture) {
  const std::string name = cpu_info(root, "model name");
  if (!name.empty() && name.rfind("ARMv", 0) != 0) return printable(name);
  std::ifstream file(root / "proc/device-tree/model");
  std::string board;
  std::getline(file, board, '\0');
  if (!board.empty()) return printable(board);
  return name.empty() ? architecture : printable(name);
}

/// GPU 0 as its driver names it, with the CUDA version that the driver supports; null without one.
/// As `find_gpu` of targets/tensorrt/device.py, which Jetsons answer too.
nlohmann::ordered_json gpu_name() {
  const std::unique_ptr<void, int (*)(void*)> driver(dlopen("libcuda.so.1", RTLD_NOW), dlclose);
  if (driver == nullptr) return nullptr;
  const auto call = [&](const char* function, auto... arguments) {
    const auto address =
        reinterpret_cast<int (*)(decltype(arguments)...)>(dlsym(driver.get(), function));
    return address != nullptr && address(arguments...) == 0;
  };
  int device = 0;
  int version = 0;
  std::array<char, 256> name{};
  if (!call("cuInit", 0U) || !call("cuDeviceGet", &device, 0) ||
      !call("cuDeviceGetName", name.data(), static_cast<int>(name.size()), device) ||
      !call("cuDriverGetVersion", &version)) {
    return nullptr;
  }
  return printable(name.data()) + ", CUDA " + std::to_string(version / 1000) + "." +
         std::to_string(version % 1000 / 10);
}

}  // namespace

int usable_cores(const fs::path& root) {
  const double cores = std::max(1U, std::thread::hardware_concurrency());
  return static_cast<int>(std::max(1.0, std::min(cores, cpu_quota(root).value_or(cores))));
}

nlohmann::ordered_json describe_machine(const fs::path& root) {
  utsname system{};
  uname(&system);
  std::istringstream words(cpu_info(root, "flags") + cpu_info(root, "Features"));
  const std::set<std::string> present{std::istream_iterator<std::string>(words), {}};
  nlohmann::ordered_json flags = nlohmann::ordered_json::array();
  // Those that targets/machine.py looks for, in its order.
  for (const char* flag : {"avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8",
                           "amx_bf16", "asimd", "asimddp", "i8mm", "bf16"}) {
    if (present.count(flag) != 0) flags.push_back(flag);
  }
  const double bytes =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
  const auto quota = cpu_quota(root);
  nlohmann::ordered_json packages{{"cmt_runtime", CMT_VERSION}};
  for (const auto& [name, version] : backend_versions()) packages[name] = version;
  return {{"python", nullptr},
          {"platform", std::string(system.sysname) + "-" + system.release + "-" + system.machine},
          {"cpu", cpu_name(root, system.machine)},
          {"cpu_flags", flags},
          {"cores", usable_cores(root)},
          {"cpu_quota", quota ? nlohmann::ordered_json(*quota) : nullptr},
          {"memory_gb", std::round(bytes / 1e8) / 10},
          {"gpu", gpu_name()},
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
