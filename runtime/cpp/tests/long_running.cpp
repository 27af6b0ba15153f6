// long_running BUNDLE ARTEFACT INFERENCES LOADS THREADS
//
// Runs a file of a bundle on the golden images so many times, loads and unloads it so many times,
// and runs it in threads with a session each. Prints as JSON how often an answer was not, bit for
// bit, the first one, and the largest growth of the resident memory after a warm-up, in percent.

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <thread>

#include "backend.hpp"
#include "npy.hpp"

namespace {

/// Resident memory in bytes.
double resident() {
  std::ifstream file("/proc/self/statm");
  double total = 0;
  double pages = 0;
  file >> total >> pages;
  return pages * static_cast<double>(sysconf(_SC_PAGESIZE));
}

/// How far the second half's most memory exceeds the first half's: a leak grows to the end, what
/// allocators keep for their threads is taken once, but not at once.
class Growth {
 public:
  explicit Growth(int total) : half_(total / 2) {}

  void sample(int done) {
    double& most = done > half_ ? second_ : first_;
    most = std::max(most, resident());
  }
  double percent() const { return std::max(0.0, 100 * (second_ / first_ - 1)); }
  double megabytes() const { return std::max(first_, second_) / 1e6; }

 private:
  int half_;
  double first_ = 0;
  double second_ = 0;
};

/// The golden images as batches, and the answers to them.
class Work {
 public:
  Work(const cmt::Bundle& bundle, const cmt::Artefact& artefact)
      : bundle_(bundle),
        artefact_(artefact),
        preprocessor_(bundle.manifest().preprocessing),
        images_(cmt::parse_npy_bytes(bundle.read(bundle.manifest().golden_images), "images")) {}

  std::size_t count() const { return images_.shape[0]; }
  std::shared_ptr<const cmt::Model> load() const { return load_model(bundle_, artefact_, 1); }

  /// The outputs for the batch that begins with this image.
  std::vector<std::vector<float>> answer(cmt::Session& session, std::size_t first) const {
    const std::size_t area = bundle_.manifest().preprocessing.area();
    for (std::size_t i = 0; i < bundle_.manifest().batch; ++i) {
      const std::size_t image = (first + i) % count();
      preprocessor_.feed(images_.values.data() + image * area, session.input(), i);
    }
    session.infer();
    std::vector<std::vector<float>> outputs;
    for (const cmt::Output& output : session.outputs()) {
      std::size_t size = 1;
      for (const std::size_t side : output.shape) size *= side;
      outputs.emplace_back(output.values, output.values + size);
    }
    return outputs;
  }

 private:
  const cmt::Bundle& bundle_;
  const cmt::Artefact& artefact_;
  cmt::Preprocessor preprocessor_;
  cmt::Array<std::uint8_t> images_;
};

using Answers = std::vector<std::vector<std::vector<float>>>;

bool same(const std::vector<std::vector<float>>& a, const std::vector<std::vector<float>>& b) {
  bool equal = a.size() == b.size();
  for (std::size_t i = 0; equal && i < a.size(); ++i) {
    equal = a[i].size() == b[i].size() &&
            std::memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(float)) == 0;
  }
  return equal;
}

/// How many of so many answers differ.
int differences(const Work& work, cmt::Session& session, const Answers& expected, int inferences,
                Growth* growth) {
  int different = 0;
  for (int i = 0; i < inferences; ++i) {
    const std::size_t image = static_cast<std::size_t>(i) % work.count();
    different += same(work.answer(session, image), expected[image]) ? 0 : 1;
    if (growth != nullptr && i % 100 == 99) growth->sample(i + 1);
  }
  return different;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  const cmt::Bundle bundle(argv[1]);
  const int inferences = std::atoi(argv[3]);
  const int loads = std::atoi(argv[4]);
  const int threads = std::atoi(argv[5]);
  for (const cmt::Artefact& artefact : bundle.manifest().artefacts) {
    if (artefact.name() != argv[2]) continue;
    const Work work(bundle, artefact);
    auto model = work.load();
    auto session = model->make_session();
    Answers expected;
    for (std::size_t i = 0; i < work.count(); ++i) expected.push_back(work.answer(*session, i));

    Growth running(inferences);
    const int drift = differences(work, *session, expected, inferences, &running);

    std::atomic<int> in_threads{0};
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; ++t) {
      pool.emplace_back([&] {
        const auto own = model->make_session();
        in_threads += differences(work, *own, expected, inferences / 10 / threads, nullptr);
      });
    }
    for (std::thread& thread : pool) thread.join();

    session.reset();
    model.reset();
    Growth loading(loads);
    int reloaded = 0;
    for (int i = 0; i < loads; ++i) {
      const auto again = work.load();
      reloaded += differences(work, *again->make_session(), expected, 1, nullptr);
      loading.sample(i + 1);
    }
    std::printf(
        "{\"inferences\": %d, \"different\": %d, \"growth_percent\": %.3f, \"mb\": %.1f, "
        "\"threads\": %d, \"different_in_threads\": %d, "
        "\"loads\": %d, \"different_after_load\": %d, \"load_growth_percent\": %.3f, "
        "\"load_mb\": %.1f}\n",
        inferences, drift, running.percent(), running.megabytes(), threads, in_threads.load(),
        loads, reloaded, loading.percent(), loading.megabytes());
    return 0;
  }
  return 2;
}
