#include "timing.hpp"

#include <algorithm>
#include <cmath>

namespace cmt::tools {
namespace {

// As measure/timing.py and measure/latency.py have them, with the reasons.
constexpr std::size_t kFewestRounds = 6;
constexpr std::size_t kMostRounds = 3 * kRounds;
constexpr double kRestart = 0.02;
constexpr double kNarrow = 0.03;

std::vector<std::size_t> quiet(const Timing& timing) {
  std::vector<std::size_t> found;
  for (std::size_t i = 0; i < timing.rounds.size(); ++i) {
    if (!timing.disturbed[i]) found.push_back(i);
  }
  return found;
}

}  // namespace

std::optional<std::string> Timing::busy() const {
  const std::size_t undisturbed = quiet(*this).size();
  if (undisturbed >= std::min(kFewestRounds, rounds.size())) return std::nullopt;
  return "this machine was busy: in " + std::to_string(rounds.size() - undisturbed) + " of " +
         std::to_string(rounds.size()) +
         " rounds files were kept from CPUs; time them again when it is quiet";
}

std::vector<std::size_t> Timing::counted() const {
  if (!busy()) return quiet(*this);
  std::vector<std::size_t> all(rounds.size());
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = i;
  return all;
}

Latency Timing::latency() const {
  std::vector<double> times;
  for (const std::size_t i : counted()) {
    times.insert(times.end(), rounds[i].begin(), rounds[i].end());
  }
  return summarise(std::move(times));
}

nlohmann::ordered_json Timing::quality() const {
  nlohmann::ordered_json found{{"rounds", rounds.size()},
                               {"disturbed", rounds.size() - quiet(*this).size()},
                               {"busy", busy().has_value()}};
  found.update(summary(usages));
  return found;
}

std::vector<double> round_ratios(const Timing& ours, const Timing& theirs) {
  std::vector<double> ratios;
  for (const std::size_t i : ours.counted()) {
    ratios.push_back(summarise(theirs.rounds[i]).p50 / summarise(ours.rounds[i]).p50);
  }
  return ratios;
}

std::pair<double, double> interval(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const auto count = static_cast<double>(values.size());
  const double most = 0.025 * std::pow(2.0, count);
  std::size_t k = 0;
  double ways = 1;
  for (double tail = 0; tail + ways <= most; ++k) {
    tail += ways;
    ways = ways * (count - static_cast<double>(k)) / (static_cast<double>(k) + 1);
  }
  k = std::max<std::size_t>(k, 1);
  return {values[k - 1], values[values.size() - k]};
}

nlohmann::ordered_json speedup(const Timing& ours, const Timing& theirs) {
  if (ours.busy()) return nullptr;
  const std::vector<double> ratios = round_ratios(ours, theirs);
  auto [low, high] = interval(ratios);
  if (&ours != &theirs) {  // a file is exactly as fast as itself
    low *= 1 - kRestart;
    high *= 1 + kRestart;
  }
  return {{"ratio", summarise(ratios).p50}, {"ci95", {low, high}}, {"rounds", ratios.size()}};
}

bool enough(const std::vector<const Timing*>& timings) {
  const Timing& first = *timings.front();
  const std::size_t done = first.rounds.size();
  if (done < kRounds || done >= kMostRounds) return done >= kMostRounds;
  return quiet(first).size() >= kFewestRounds &&
         std::all_of(timings.begin(), timings.end(), [&](const Timing* timing) {
           const auto [low, high] = interval(round_ratios(*timing, first));
           return high <= (1 + kNarrow) * low;
         });
}

}  // namespace cmt::tools
