#include "disturbance.hpp"

#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>

#include "control_groups.hpp"

namespace cmt::tools {
namespace {

namespace fs = std::filesystem;
using Figure = std::optional<double> CpuUse::*;

// As measure/disturbance.py has them, with the reason.
constexpr double kLimit = 0.1;
constexpr double kTick = 0.01;

std::vector<int> own_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

/// By the scheduler's statistics of each thread: time on a CPU, time in wait for one, in ns.
std::optional<double> waited(const fs::path& root) {
  double sum = 0;
  bool ran = false;  // a kernel that does not keep them has zeros
  std::error_code error;
  for (const auto& thread : fs::directory_iterator(root / "proc/self/task", error)) {
    std::ifstream file(thread.path() / "schedstat");
    double on = 0;
    double waiting = 0;
    if (file >> on >> waiting) sum += waiting / 1e9;
    ran = ran || on > 0;
  }
  return ran ? std::optional(sum) : std::nullopt;
}

/// Seconds that this process's CPUs were busy, and that were stolen from them.
std::optional<std::pair<double, double>> machine(const fs::path& root) {
  std::ifstream file(root / "proc/stat");
  const std::vector<int> own = own_cpus();
  double busy = 0;
  double stolen = 0;
  bool found = false;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    words >> name;
    const auto is_it = [&](int cpu) { return name == "cpu" + std::to_string(cpu); };
    if (std::none_of(own.begin(), own.end(), is_it)) continue;
    double user = 0, nice = 0, system = 0, idle = 0, iowait = 0, irq = 0, softirq = 0, steal = 0;
    if (words >> user >> nice >> system >> idle >> iowait >> irq >> softirq >> steal) {
      busy += user + nice + system + irq + softirq;
      stolen += steal;
      found = true;
    }
  }
  if (!found) return std::nullopt;
  const auto per_second = static_cast<double>(sysconf(_SC_CLK_TCK));
  return std::pair{busy / per_second, stolen / per_second};
}

std::optional<double> megahertz(const fs::path& root) {
  double sum = 0;
  int count = 0;
  for (const int cpu : own_cpus()) {
    std::ifstream file(root / "sys/devices/system/cpu" / ("cpu" + std::to_string(cpu)) /
                       "cpufreq/scaling_cur_freq");
    double kilohertz = 0;
    if (file >> kilohertz) {
      sum += kilohertz / 1000;
      ++count;
    }
  }
  return count == 0 ? std::nullopt : std::optional(sum / count);
}

}  // namespace

double CpuUse::kept_away() const {
  double by_others = 0;
  if (waited && others) {
    // Threads also wait for each other, where they are more than CPUs: that is nobody else's.
    const double most = std::max(0.0, *others) + kTick * static_cast<double>(own_cpus().size());
    by_others = std::min(*waited, most);
  }
  return std::max(0.0, by_others) + std::max(0.0, stolen.value_or(0)) +
         std::max(0.0, throttled.value_or(0));
}

CpuUse cpu_use(const fs::path& root) {
  using Seconds = std::chrono::duration<double>;
  CpuUse now;
  timespec cpu{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
  now.cpu = static_cast<double>(cpu.tv_sec) + static_cast<double>(cpu.tv_nsec) / 1e9;
  if (const auto spent = machine(root)) {
    now.others = spent->first - now.cpu;
    now.stolen = spent->second;
    now.throttled = throttled_seconds(root);
  }
  now.waited = waited(root);
  rusage own{};
  getrusage(RUSAGE_SELF, &own);
  now.switches = static_cast<double>(own.ru_nivcsw);
  now.mhz = megahertz(root);
  double load = 0;
  if (std::ifstream(root / "proc/loadavg") >> load) now.load = load;
  now.wall = Seconds(std::chrono::steady_clock::now().time_since_epoch()).count();
  return now;
}

CpuUse between(const CpuUse& before, const CpuUse& after) {
  CpuUse spent;
  spent.wall = after.wall - before.wall;
  spent.cpu = after.cpu - before.cpu;
  for (const Figure figure :
       {&CpuUse::waited, &CpuUse::stolen, &CpuUse::throttled, &CpuUse::others, &CpuUse::switches}) {
    if (before.*figure && after.*figure) spent.*figure = *(after.*figure) - *(before.*figure);
  }
  spent.mhz = after.mhz;
  spent.load = after.load;
  return spent;
}

bool disturbed(const CpuUse& usage) { return usage.kept_away() > kLimit * usage.wall; }

nlohmann::ordered_json summary(const std::vector<CpuUse>& usages) {
  double wall = 0;
  for (const CpuUse& usage : usages) wall += usage.wall;
  const auto over = [&](double all, const auto& figure) -> nlohmann::ordered_json {
    double sum = 0;
    for (const CpuUse& usage : usages) {
      const std::optional<double> value = figure(usage);
      if (!value) return nullptr;
      sum += *value;
    }
    return std::max(0.0, sum / all);
  };
  const auto share = [&](Figure field) {
    return over(wall, [&](const CpuUse& usage) { return usage.*field; });
  };
  const auto mean = [&](Figure field) {
    return over(static_cast<double>(usages.size()),
                [&](const CpuUse& usage) { return usage.*field; });
  };
  const auto lost = [](const CpuUse& usage) {
    const bool told = usage.waited && usage.others;
    return told ? std::optional(usage.kept_away()) : std::nullopt;
  };
  return {{"lost", over(wall, lost)},
          {"cpu", over(wall, [](const CpuUse& usage) { return std::optional(usage.cpu); })},
          {"waited", share(&CpuUse::waited)},
          {"stolen", share(&CpuUse::stolen)},
          {"throttled", share(&CpuUse::throttled)},
          {"others", share(&CpuUse::others)},
          {"switches_per_s", share(&CpuUse::switches)},
          {"mhz", mean(&CpuUse::mhz)},
          {"load", mean(&CpuUse::load)}};
}

}  // namespace cmt::tools
