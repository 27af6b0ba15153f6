#include "statistics.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace cmt::tools {
namespace {

/// Linear between neighbours, as NumPy does by default.
double percentile(const std::vector<double>& sorted, double percent) {
  const double place = percent / 100 * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<std::size_t>(place);
  const std::size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (place - static_cast<double>(low)) * (sorted[high] - sorted[low]);
}

}  // namespace

Latency summarise(std::vector<double> milliseconds) {
  std::sort(milliseconds.begin(), milliseconds.end());
  const auto count = static_cast<double>(milliseconds.size());
  const double mean = std::accumulate(milliseconds.begin(), milliseconds.end(), 0.0) / count;
  double squares = 0;
  for (const double ms : milliseconds) squares += (ms - mean) * (ms - mean);
  return {percentile(milliseconds, 50),
          percentile(milliseconds, 90),
          percentile(milliseconds, 99),
          mean,
          milliseconds.size() > 1 ? std::sqrt(squares / (count - 1)) : 0,
          milliseconds.size()};
}

}  // namespace cmt::tools
