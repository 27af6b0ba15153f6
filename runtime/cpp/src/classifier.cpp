#include <algorithm>
#include <array>
#include <cmath>
#include <cmt/classifier.hpp>
#include <numeric>
#include <utility>

#include "backend.hpp"
#include "bundle.hpp"
#include "golden.hpp"
#include "preprocessing.hpp"
#include "translate.hpp"

namespace cmt {
namespace {

/// What Classifiers on one loaded file share.
struct Loaded {
  Manifest manifest;
  std::string artefact;
  std::shared_ptr<const Model> model;
};

/// Where a precision stands among those that are taken by default, the smallest first.
std::ptrdiff_t rank(const Artefact& artefact) {
  constexpr std::array<std::string_view, 3> kSmallestFirst{"int8", "fp16", "fp32"};
  return std::find(kSmallestFirst.begin(), kSmallestFirst.end(), artefact.precision) -
         kSmallestFirst.begin();
}

/// The file that Options::artefact means.
const Artefact& choose(const Bundle& bundle, const std::string& wanted, const std::string& device) {
  const Artefact* best = nullptr;
  std::string known;
  std::string reason;
  for (const Artefact& artefact : bundle.manifest().artefacts) {
    const bool meant = wanted.empty() || wanted == artefact.precision || wanted == artefact.name();
    if (const auto missing = not_runnable(bundle, artefact, device)) {
      if (meant) reason = artefact.file.path + ": " + *missing;
      continue;
    }
    known += (known.empty() ? "" : ", ") + artefact.name();
    if (meant && (best == nullptr || rank(artefact) < rank(*best))) best = &artefact;
  }
  if (best != nullptr) return *best;
  if (reason.empty()) reason = "the bundle has no '" + wanted + "'";
  throw InputError(reason + (known.empty() ? "" : "; this build can run " + known));
}

std::shared_ptr<const Loaded> load(const std::filesystem::path& folder, const Options& options) {
  const Bundle bundle(folder, options.trust);
  const Manifest& manifest = bundle.manifest();
  if (manifest.outputs.size() != 1) {
    throw InputError(folder.string() + " gives feature maps, no classes: export it anew with " +
                     "--output logits");
  }
  require_device(bundle, options.device);
  const Artefact& artefact = choose(bundle, options.artefact, options.device);
  auto model = load_model(bundle, artefact, options.threads, options.device);
  if (!options.device.empty()) {
    const Check check = check_golden(bundle, artefact, options.device, [&] { return model; });
    if (check.passed == false) {
      throw InputError("device " + options.device +
                       " does not compute what the bundle's files do: " + artefact.file.path + " " +
                       check.detail + "; take another one");
    }
  }
  return std::make_shared<Loaded>(Loaded{manifest, artefact.file.path, std::move(model)});
}

}  // namespace

struct Classifier::State {
  std::shared_ptr<const Loaded> loaded;
  Preprocessor preprocessor;
  std::unique_ptr<Session> session;
  std::size_t classes = 0;
  std::vector<std::size_t> order;  ///< class indices, the best first
  std::vector<ImageView> one;      ///< a batch of one image
  std::vector<std::vector<Prediction>> results;

  explicit State(std::shared_ptr<const Loaded> from)
      : loaded(std::move(from)),
        preprocessor(loaded->manifest.preprocessing),
        session(loaded->model->make_session()),
        one(1) {
    const Output& logits = session->outputs().front();
    if (logits.shape.size() == 2) classes = logits.shape[1];
    if (classes == 0) {
      throw InputError(loaded->artefact + " does not answer with a number for each class: export " +
                       "the bundle again");
    }
    order.resize(classes);
  }

  void rank(const float* logits, std::size_t top_k, std::vector<Prediction>& result) {
    if (!std::all_of(logits, logits + classes, [](float x) { return std::isfinite(x); })) {
      throw InputError(loaded->artefact +
                       " answered with NaN or infinity: export the bundle again");
    }
    const std::size_t count = std::min(top_k, classes);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count),
                      order.end(), [logits](std::size_t a, std::size_t b) {
                        return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
                      });
    const double highest = *std::max_element(logits, logits + classes);
    double sum = 0;
    for (std::size_t i = 0; i < classes; ++i) sum += std::exp(logits[i] - highest);
    result.resize(count);
    const std::vector<std::string>& labels = loaded->manifest.labels;
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t index = order[i];
      result[i].index = index;
      result[i].label = labels.empty() ? std::string_view() : std::string_view(labels[index]);
      result[i].probability = static_cast<float>(std::exp(logits[index] - highest) / sum);
    }
  }

  void classify(const std::vector<ImageView>& images, std::size_t top_k) {
    translated(loaded->artefact, [&] { answer(images, top_k); });
  }

 private:
  void answer(const std::vector<ImageView>& images, std::size_t top_k) {
    const Manifest& manifest = loaded->manifest;
    results.resize(images.size());
    for (std::size_t begin = 0; begin < images.size(); begin += manifest.batch) {
      const std::size_t count = std::min(manifest.batch, images.size() - begin);
      for (std::size_t i = 0; i < manifest.batch; ++i) {
        // A batch that is not full starts over with its first images.
        const ImageView& image = images[begin + i % count];
        preprocessor.feed(preprocessor.resize(image), session->input(), i);
      }
      session->infer();
      const float* logits = session->outputs().front().values;
      for (std::size_t i = 0; i < count; ++i) rank(logits + i * classes, top_k, results[begin + i]);
    }
  }
};

Classifier::Classifier(const std::filesystem::path& bundle, const Options& options)
    : Classifier(translated(bundle.string(),
                            [&] { return std::make_unique<State>(load(bundle, options)); })) {}

Classifier::Classifier(std::unique_ptr<State> state) : state_(std::move(state)) {}
Classifier::Classifier(Classifier&& other) noexcept = default;
Classifier& Classifier::operator=(Classifier&& other) noexcept = default;
Classifier::~Classifier() = default;

Classifier Classifier::share() const {
  return Classifier(translated(state_->loaded->artefact,
                               [&] { return std::make_unique<State>(state_->loaded); }));
}

const std::vector<Prediction>& Classifier::classify(const ImageView& image, std::size_t top_k) {
  state_->one.front() = image;
  state_->classify(state_->one, top_k);
  return state_->results.front();
}

const std::vector<std::vector<Prediction>>& Classifier::classify(
    const std::vector<ImageView>& images, std::size_t top_k) {
  state_->classify(images, top_k);
  return state_->results;
}

const std::string& Classifier::artefact() const { return state_->loaded->artefact; }

const std::vector<std::string>& Classifier::labels() const {
  return state_->loaded->manifest.labels;
}

const std::optional<ImageRange>& Classifier::image_range() const {
  return state_->loaded->manifest.image_range;
}

}  // namespace cmt
