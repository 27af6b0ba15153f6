#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

namespace cmt::tools {

/// What this process and its machine have spent; of a burst, the difference of two. Seconds, summed
/// over threads or CPUs; nothing where the system does not tell. As measure/disturbance.py.
struct CpuUse {
  double wall = 0;                  ///< by the clock
  double cpu = 0;                   ///< of this process
  std::optional<double> waited;     ///< its threads could have run and had no CPU
  std::optional<double> stolen;     ///< by other virtual machines
  std::optional<double> throttled;  ///< by limits of its control groups
  std::optional<double> others;     ///< of other processes on its CPUs
  std::optional<double> switches;   ///< how often its threads were made to leave a CPU
  std::optional<double> mhz;        ///< mean of its CPUs' present frequencies
  std::optional<double> load;       ///< processes that ran or could have run, of a minute

  /// For how long it was kept from CPUs by somebody else, as far as the system tells.
  double kept_away() const;
};

/// What has been spent so far; `root` is where /proc and /sys are.
CpuUse cpu_use(const std::filesystem::path& root = "/");

/// What was spent from one reading to a later one.
CpuUse between(const CpuUse& before, const CpuUse& after);

/// Whether a burst was kept from CPUs for more than a tenth of its time.
bool disturbed(const CpuUse& usage);

/// The report's `timing` of a file's bursts, as far as it is about CPUs.
nlohmann::ordered_json summary(const std::vector<CpuUse>& usages);

}  // namespace cmt::tools
