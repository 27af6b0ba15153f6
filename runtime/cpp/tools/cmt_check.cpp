// cmt_check BUNDLE: does this program compute what the exporting machine did?

#include <algorithm>
#include <cmath>
#include <cmt/error.hpp>
#include <cmt/image.hpp>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>

#include "../src/backend.hpp"
#include "../src/npy.hpp"
#include "../src/preprocessing.hpp"
#include "command.hpp"

namespace {

constexpr const char* kUsage =
    "usage: cmt_check BUNDLE [--threads N] [--trust KEY | --trust-unsigned]\n"
    "\n"
    "Checks the sha256 of every file, prepares the golden photo, and runs every file that this\n"
    "build can on the golden images. Exit status: 0 all is as it was when the bundle was made;\n"
    "1 something differs; 2 the bundle is unusable, or nothing in it can be run; 3 the machine\n"
    "failed, or what was found could not be written.\n"
    "  --threads N      CPU threads; default: all\n";

template <typename T>
cmt::Array<T> expect_shape(cmt::Array<T> array, const std::vector<std::size_t>& shape,
                           const std::string& name) {
  if (array.shape.size() != shape.size() ||
      !std::equal(shape.begin() + 1, shape.end(), array.shape.begin() + 1) ||
      (shape[0] != 0 && array.shape[0] != shape[0])) {
    throw cmt::InputError(name + " has another shape than it should: export the bundle again");
  }
  return array;
}

cmt::Array<std::uint8_t> read_pixels(const cmt::Bundle& bundle, const cmt::FileEntry& entry,
                                     const std::vector<std::size_t>& shape) {
  return expect_shape(cmt::parse_npy_bytes(bundle.read(entry), entry.path), shape, entry.path);
}

bool report(bool passed, const std::string& name, const std::string& detail) {
  std::printf("%-8s%s: %s\n", passed ? "ok" : "FAILED", cmt::printable(name).c_str(),
              detail.c_str());
  return passed;
}

bool check_preprocessing(const cmt::Bundle& bundle) {
  const cmt::Manifest& manifest = bundle.manifest();
  const cmt::Preprocessing& p = manifest.preprocessing;
  const auto expected =
      read_pixels(bundle, manifest.golden_pixels,
                  {static_cast<std::size_t>(p.height), static_cast<std::size_t>(p.width), 3});
  const cmt::Image photo = cmt::read_image(bundle.path(manifest.golden_photo));
  cmt::Preprocessor preprocessor(p);
  const std::uint8_t* pixels = preprocessor.resize(photo.view());
  int difference = 0;
  for (std::size_t i = 0; i < expected.values.size(); ++i) {
    difference = std::max(difference, std::abs(pixels[i] - expected.values[i]));
  }
  return report(difference <= manifest.max_grey_levels, "preprocessing",
                "differs by " + std::to_string(difference) + " grey levels, " +
                    std::to_string(manifest.max_grey_levels) + " allowed");
}

/// An array for each output, (images, ...).
using Answers = std::vector<cmt::Array<float>>;

bool are_of_one_shape(const Answers& some, const Answers& others) {
  return std::equal(some.begin(), some.end(), others.begin(), others.end(),
                    [](const auto& one, const auto& other) { return one.shape == other.shape; });
}

/// What a file may answer; finite, and alike in shape.
std::vector<Answers> read_answers(const cmt::Bundle& bundle, const cmt::Artefact& artefact) {
  const std::size_t labels = bundle.manifest().labels.size();
  std::vector<Answers> found;
  for (const std::vector<cmt::FileEntry>& entries : artefact.golden_answers) {
    Answers& answers = found.emplace_back();
    for (const cmt::FileEntry& entry : entries) {
      answers.push_back(cmt::parse_npy_floats(bundle.read(entry), entry.path));
    }
    const std::vector<std::size_t>& shape = answers.front().shape;
    if (labels != 0 && answers.size() == 1 && shape.size() == 2 && shape[1] != labels) {
      throw cmt::InputError(artefact.file.path + " answers for " + std::to_string(shape[1]) +
                            " classes and the manifest names " + std::to_string(labels) +
                            ": export the bundle again");
    }
    if (!are_of_one_shape(answers, found.front())) {
      throw cmt::InputError("the golden answers of " + artefact.file.path +
                            " differ in shape: " + "export the bundle again");
    }
  }
  return found;
}

/// Answers to `count` images, with nothing in them yet.
Answers empty_answers(const std::vector<cmt::Output>& outputs, std::size_t count) {
  Answers answers;
  for (const cmt::Output& output : outputs) {
    answers.push_back({output.shape, {}});
    answers.back().shape.front() = count;
  }
  return answers;
}

Answers run_artefact(const cmt::Bundle& bundle, const cmt::Artefact& artefact, int threads) {
  const cmt::Manifest& manifest = bundle.manifest();
  const cmt::Preprocessing& p = manifest.preprocessing;
  const auto height = static_cast<std::size_t>(p.height);
  const auto width = static_cast<std::size_t>(p.width);
  const auto images = read_pixels(bundle, manifest.golden_images, {0, height, width, 3});
  const std::size_t count = images.shape[0];
  const cmt::Preprocessor preprocessor(p);
  const auto model = cmt::load_model(bundle, artefact, threads);
  const auto session = model->make_session();
  Answers answers = empty_answers(session->outputs(), count);
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

double largest_difference(const Answers& ours, const Answers& expected) {
  double largest = 0;
  for (std::size_t o = 0; o < expected.size(); ++o) {
    largest = std::max(largest, relative_difference(ours[o].values, expected[o].values));
  }
  return largest;
}

void skip(const cmt::Artefact& artefact, const std::string& reason) {
  std::printf("%-8s%s: %s\n", "skipped", cmt::printable(artefact.file.path).c_str(),
              cmt::printable(reason).c_str());
}

/// By the rule of `check_artefact` in bundle/golden.py: either of the stored answers is right.
bool check_artefact(const cmt::Bundle& bundle, const cmt::Artefact& artefact, int threads) {
  const std::vector<Answers> known = read_answers(bundle, artefact);
  const auto otherwise = cmt::computes_otherwise(artefact);
  if (otherwise && known.size() == 1) {
    skip(artefact, *otherwise + ", and the bundle has no answers in that: export again");
    return true;
  }
  const Answers ours = run_artefact(bundle, artefact, threads);
  if (!are_of_one_shape(ours, known.front())) {
    throw cmt::InputError(artefact.file.path +
                          " has other outputs than its golden ones: " + "export the bundle again");
  }
  double least = HUGE_VAL;
  for (const Answers& expected : known) {
    least = std::min(least, largest_difference(ours, expected));
  }
  std::array<char, 80> detail{};
  std::snprintf(detail.data(), detail.size(), "differs by %.1e, %g allowed", least,
                artefact.max_rel);
  return report(least <= artefact.max_rel, artefact.file.path, detail.data());
}

int check(const cmt::tools::Arguments& arguments) {
  const int threads = arguments.count("threads", 0, 1, 4096);
  const cmt::Bundle bundle(arguments.positional.front(), cmt::tools::trust(arguments));
  if (arguments.has("trust")) report(true, "signature", "made with the key of --trust");
  bool passed = check_preprocessing(bundle);
  bool ran = false;
  for (const cmt::Artefact& artefact : bundle.manifest().artefacts) {
    if (const auto reason = cmt::not_runnable(bundle, artefact)) {
      skip(artefact, *reason);
      continue;
    }
    ran = true;
    passed = check_artefact(bundle, artefact, threads) && passed;
  }
  if (!ran) throw cmt::InputError("nothing was verified: none of the files can be run here");
  return passed ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  return cmt::tools::run(argc, argv, {kUsage, {"threads"}, {}, 1}, check);
}
