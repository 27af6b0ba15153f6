#pragma once

#include <cstddef>
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

/// The report's paired accuracy, computed as measure/statistics.py does.
struct Paired {
  double drop_pp = 0;
  double low = 0;  ///< of the drop's 95 % interval, points
  double high = 0;
  double mcnemar_p = 1;
  double resolvable_pp = 0;
};

/// Of so many images, of which torch alone answers `lost` right and the file alone `gained`.
Paired compare_paired(std::size_t lost, std::size_t gained, std::size_t images);

/// Of at least one run.
Latency summarise(std::vector<double> milliseconds);

}  // namespace cmt::tools
