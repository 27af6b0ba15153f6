#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "disturbance.hpp"
#include "statistics.hpp"

namespace cmt::tools {

/// What was measured of one file's speed, in alternation with others; ms. As measure/timing.py.
struct Timing {
  double load = 0;
  double first = 0;
  std::vector<std::vector<double>> rounds;  ///< the runs of each burst
  std::vector<CpuUse> usages;               ///< of each burst
  std::vector<bool> disturbed;              ///< the round, for any of the files in it

  /// Why no speed-up is to be believed; nothing where enough rounds were undisturbed.
  std::optional<std::string> busy() const;
  /// The rounds that figures are of: the undisturbed ones; all of a busy machine's.
  std::vector<std::size_t> counted() const;
  Latency latency() const;
  /// The report's `timing`.
  nlohmann::ordered_json quality() const;
};

/// Median time of `theirs` over that of `ours`, for each counted round of one alternation.
std::vector<double> round_ratios(const Timing& ours, const Timing& theirs);

/// At least 95 % interval of the median, by the sign test; of few values, all of them.
std::pair<double, double> interval(std::vector<double> values);

/// How many times as fast as `theirs` `ours` is, as the report has it; null on a busy machine.
nlohmann::ordered_json speedup(const Timing& ours, const Timing& theirs);

/// Whether an alternation may end, of which `timings` are all files': enough undisturbed rounds,
/// and ratios to the first one with a narrow interval; at the latest after three times as many.
bool enough(const std::vector<const Timing*>& timings);

/// Rounds of an alternation, the fewest.
constexpr std::size_t kRounds = 9;

}  // namespace cmt::tools
