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

constexpr double kZ95 = 1.959963984540054;
constexpr double kZ80 = 0.8416212335729143;

/// Exact, two-sided: the discordant images as tosses of a fair coin.
double mcnemar_exact(double lost, double gained) {
  const double tosses = lost + gained;
  double tail = 0;
  for (double heads = 0; heads <= std::min(lost, gained); ++heads) {
    const double ways =
        std::lgamma(tosses + 1) - std::lgamma(heads + 1) - std::lgamma(tosses - heads + 1);
    tail += std::exp(ways - tosses * std::log(2.0));
  }
  return std::min(1.0, 2 * tail);
}

double smallest_resolvable(double lost, double gained, double images) {
  const double observed = (lost + gained + 1) / (images + 2);
  double low = 0;
  double high = 1;
  for (int i = 0; i < 40; ++i) {
    const double middle = (low + high) / 2;
    const double changing = std::max(observed, middle);
    const double root =
        kZ95 * std::sqrt(changing) + kZ80 * std::sqrt(std::max(changing - middle * middle, 0.0));
    (root / middle * (root / middle) > images ? low : high) = middle;
  }
  return high;
}

}  // namespace

Paired compare_paired(std::size_t lost, std::size_t gained, std::size_t images) {
  const auto l = static_cast<double>(lost);
  const auto g = static_cast<double>(gained);
  const auto n = static_cast<double>(images);
  const double centre = (l - g) / (n + 2);
  const double spread = kZ95 * std::sqrt(l + g + 1 - (l - g) * (l - g) / (n + 2)) / (n + 2);
  return {100 * (l - g) / n, 100 * std::max(-1.0, centre - spread),
          100 * std::min(1.0, centre + spread), mcnemar_exact(l, g),
          100 * smallest_resolvable(l, g, n)};
}

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
