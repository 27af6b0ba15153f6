#pragma once

#include <vector>

namespace cmt::tools {

/// The report's latency figures, computed as measure/statistics.py does; milliseconds.
struct Latency {
  double p50 = 0;
  double p90 = 0;
  double p99 = 0;
  double mean = 0;
  double std = 0;
  std::size_t iterations = 0;
};

/// Of at least one run.
Latency summarise(std::vector<double> milliseconds);

}  // namespace cmt::tools
