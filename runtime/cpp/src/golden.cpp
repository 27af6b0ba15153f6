#include "golden.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cmt/error.hpp>
#include <cstdio>
#include <numeric>

#include "preprocessing.hpp"

namespace cmt {
namespace {

// As in bundle/golden.py.
constexpr double kFp16Tolerance = 2e-2;
constexpr double kLeastCosine = 0.9;

template <typename T>
Array<T> expect_shape(Array<T> array, const std::vector<std::size_t>& shape,
                      const std::string& name) {
  if (array.shape.size() != shape.size() ||
      !std::equal(shape.begin() + 1, shape.end(), array.shape.begin() + 1) ||
      (shape[0] != 0 && array.shape[0] != shape[0])) {
    throw InputError(name + " has another shape than it should: export the bundle again");
  }
  return array;
}

/// An array for each output, (images, ...).
using Arrays = std::vector<Array<float>>;

bool are_of_one_shape(const Arrays& some, const Arrays& others) {
  return std::equal(some.begin(), some.end(), others.begin(), others.end(),
                    [](const auto& one, const auto& other) { return one.shape == other.shape; });
}

/// What a file may answer; finite, and alike in shape.
std::vector<Arrays> read_answers(const Bundle& bundle, const Artefact& artefact) {
  const std::size_t labels = bundle.manifest().labels.size();
  std::vector<Arrays> found;
  for (const std::vector<FileEntry>& entries : artefact.golden_answers) {
    Arrays& answers = found.emplace_back();
    for (const FileEntry& entry : entries) {
      answers.push_back(parse_npy_floats(bundle.read(entry), entry.path));
    }
    const std::vector<std::size_t>& shape = answers.front().shape;
    if (labels != 0 && answers.size() == 1 && shape.size() == 2 && shape[1] != labels) {
      throw InputError(artefact.file.path + " answers for " + std::to_string(shape[1]) +
                       " classes and the manifest names " + std::to_string(labels) +
                       ": export the bundle again");
    }
    if (!are_of_one_shape(answers, found.front())) {
      throw InputError("the golden answers of " + artefact.file.path +
                       " differ in shape: " + "export the bundle again");
    }
  }
  return found;
}

/// Arrays to `count` images, with nothing in them yet.
Arrays empty_answers(const std::vector<Output>& outputs, std::size_t count) {
  Arrays answers;
  for (const Output& output : outputs) {
    answers.push_back({output.shape, {}});
    answers.back().shape.front() = count;
  }
  return answers;
}

Arrays run(const Bundle& bundle, const Model& model) {
  const Manifest& manifest = bundle.manifest();
  const Preprocessing& p = manifest.preprocessing;
  const auto height = static_cast<std::size_t>(p.height);
  const auto width = static_cast<std::size_t>(p.width);
  const auto images = read_pixels(bundle, manifest.golden_images, {0, height, width, 3});
  const std::size_t count = images.shape[0];
  const Preprocessor preprocessor(p);
  const auto session = model.make_session();
  Arrays answers = empty_answers(session->outputs(), count);
  for (std::size_t begin = 0; begin < count; begin += manifest.batch) {
    for (std::size_t i = 0; i < manifest.batch; ++i) {
      // The batch is fixed, so the last one starts over with the first images.
      preprocessor.feed(images.values.data() + (begin + i) % count * p.area(), session->input(), i);
    }
    session->infer();
    const std::size_t used = std::min(manifest.batch, count - begin);
    for (std::size_t o = 0; o < answers.size(); ++o) {
      const std::vector<std::size_t>& shape = answers[o].shape;
      const std::size_t size =
          std::accumulate(shape.begin() + 1, shape.end(), used, std::multiplies<>());
      const float* values = session->outputs()[o].values;
      answers[o].values.insert(answers[o].values.end(), values, values + size);
    }
  }
  return answers;
}

/// Largest difference over largest expected value; infinite where an answer is no number.
double relative_difference(const std::vector<float>& ours, const std::vector<float>& expected) {
  double absolute = 0;
  double scale = 1e-30;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double one = std::abs(double{ours[i]} - double{expected[i]});
    if (!(one <= absolute)) absolute = std::isnan(one) ? HUGE_VAL : one;
    scale = std::max(scale, std::abs(double{expected[i]}));
  }
  return absolute / scale;
}

double largest_difference(const Arrays& ours, const Arrays& expected) {
  double largest = 0;
  for (std::size_t o = 0; o < expected.size(); ++o) {
    largest = std::max(largest, relative_difference(ours[o].values, expected[o].values));
  }
  return largest;
}

/// The least cosine of an image's answers, each image's flattened.
double smallest_cosine(const Array<float>& a, const Array<float>& b) {
  const std::size_t images = a.shape.front();
  const std::size_t size = a.values.size() / images;
  double least = 1;
  for (std::size_t i = 0; i < images; ++i) {
    const auto x = a.values.begin() + static_cast<std::ptrdiff_t>(i * size);
    const auto y = b.values.begin() + static_cast<std::ptrdiff_t>(i * size);
    const auto end = x + static_cast<std::ptrdiff_t>(size);
    const double xx = std::inner_product(x, end, x, 0.0);
    const double yy = std::inner_product(y, y + static_cast<std::ptrdiff_t>(size), y, 0.0);
    const double cosine =
        std::inner_product(x, end, y, 0.0) / std::max(std::sqrt(xx) * std::sqrt(yy), 1e-30);
    if (!(cosine >= least)) least = cosine;
  }
  return least;
}

/// The least cosine with the answers of the bundle's FP32 file; 1 without one.
double likeness_to_float(const Bundle& bundle, const Arrays& ours) {
  for (const Artefact& artefact : bundle.manifest().artefacts) {
    if (artefact.precision != "fp32") continue;
    const Arrays expected = read_answers(bundle, artefact).front();
    if (!are_of_one_shape(ours, expected)) {
      throw InputError("the golden answers of the FP32 file have another shape: export again");
    }
    double least = 1;
    for (std::size_t o = 0; o < ours.size(); ++o) {
      least = std::min(least, smallest_cosine(ours[o], expected[o]));
    }
    return least;
  }
  return 1;
}

std::string text(const char* form, double first, double second = 0) {
  std::array<char, 100> line{};
  std::snprintf(line.data(), line.size(), form, first, second);
  return line.data();
}

}  // namespace

Array<std::uint8_t> read_pixels(const Bundle& bundle, const FileEntry& entry,
                                const std::vector<std::size_t>& shape) {
  return expect_shape(parse_npy_bytes(bundle.read(entry), entry.path), shape, entry.path);
}

Check check_golden(const Bundle& bundle, const Artefact& artefact, const std::string& device,
                   const std::function<std::shared_ptr<const Model>()>& load) {
  const std::vector<Arrays> known = read_answers(bundle, artefact);
  double limit = artefact.max_rel;
  if (const auto otherwise = computes_otherwise(artefact, device)) {
    if (!device.empty() && device != kCpu) {
      limit = std::max(limit, kFp16Tolerance);
    } else if (known.size() == 1) {
      return {std::nullopt, *otherwise + ", and the bundle has no answers in that: export again"};
    }
  }
  const Arrays ours = run(bundle, *load());
  if (!are_of_one_shape(ours, known.front())) {
    throw InputError(artefact.file.path +
                     " has other outputs than its golden ones: " + "export the bundle again");
  }
  double least = HUGE_VAL;
  for (const Arrays& expected : known) {
    least = std::min(least, largest_difference(ours, expected));
  }
  if (least <= limit && !device.empty()) {
    const double likeness = likeness_to_float(bundle, ours);
    if (!(likeness >= kLeastCosine)) {
      return {false, text("has a cosine of %.2f with the FP32 file's answers", likeness)};
    }
  }
  return {least <= limit, text("differs by %.1e, %g allowed", least, limit)};
}

}  // namespace cmt
