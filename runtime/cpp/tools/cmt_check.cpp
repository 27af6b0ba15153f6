// cmt_check BUNDLE: does this program compute what the exporting machine did?

#include <algorithm>
#include <cmath>
#include <cmt/error.hpp>
#include <cmt/image.hpp>
#include <cstdio>
#include <cstdlib>

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

/// Largest difference over largest expected value; expected values are finite.
struct Difference {
  double absolute = 0;  ///< infinite where an answer is no number
  double scale = 0;

  void add(const float* ours, const float* expected, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      const double one = std::abs(double{ours[i]} - double{expected[i]});
      if (!(one <= absolute)) absolute = std::isnan(one) ? HUGE_VAL : one;
      scale = std::max(scale, std::abs(double{expected[i]}));
    }
  }
  double relative() const { return absolute / std::max(scale, 1e-30); }
};

bool check_artefact(const cmt::Bundle& bundle, const cmt::Artefact& artefact, int threads) {
  const cmt::Manifest& manifest = bundle.manifest();
  const cmt::Preprocessing& p = manifest.preprocessing;
  const auto height = static_cast<std::size_t>(p.height);
  const auto width = static_cast<std::size_t>(p.width);
  const auto images = read_pixels(bundle, manifest.golden_images, {0, height, width, 3});
  const std::size_t count = images.shape[0];
  const cmt::Preprocessor preprocessor(p);
  const auto model = cmt::load_model(bundle, artefact, threads);
  const auto session = model->make_session();
  std::vector<cmt::Array<float>> expected;
  for (std::size_t o = 0; o < manifest.outputs.size(); ++o) {
    const cmt::FileEntry& entry = artefact.golden_outputs[o];
    std::vector<std::size_t> shape = session->outputs()[o].shape;
    shape[0] = count;
    expected.push_back(
        expect_shape(cmt::parse_npy_floats(bundle.read(entry), entry.path), shape, entry.path));
  }
  std::vector<Difference> differences(expected.size());
  for (std::size_t begin = 0; begin < count; begin += manifest.batch) {
    for (std::size_t i = 0; i < manifest.batch; ++i) {
      // The batch is fixed, so the last one starts over with the first images.
      preprocessor.feed(images.values.data() + (begin + i) % count * p.area(), session->input(), i);
    }
    session->infer();
    const std::size_t used = std::min(manifest.batch, count - begin);
    for (std::size_t o = 0; o < expected.size(); ++o) {
      const std::size_t each = expected[o].values.size() / count;
      differences[o].add(session->outputs()[o].values, expected[o].values.data() + begin * each,
                         used * each);
    }
  }
  double worst = 0;
  for (const Difference& difference : differences) {
    if (!(difference.relative() <= worst)) worst = difference.relative();
  }
  std::array<char, 80> detail{};
  std::snprintf(detail.data(), detail.size(), "differs by %.1e, %g allowed", worst,
                artefact.max_rel);
  return report(worst <= artefact.max_rel, artefact.file.path, detail.data());
}

int check(const cmt::tools::Arguments& arguments) {
  const int threads = arguments.count("threads", 0, 1, 4096);
  const cmt::Bundle bundle(arguments.positional.front(), cmt::tools::trust(arguments));
  if (arguments.has("trust")) report(true, "signature", "made with the key of --trust");
  bool passed = check_preprocessing(bundle);
  bool ran = false;
  for (const cmt::Artefact& artefact : bundle.manifest().artefacts) {
    if (const auto reason = cmt::not_runnable(bundle, artefact)) {
      std::printf("%-8s%s: %s\n", "skipped", cmt::printable(artefact.file.path).c_str(),
                  cmt::printable(*reason).c_str());
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
