// use_classifier BUNDLE IMAGE...
//
// What a program may expect of cmt::Classifier, checked on a real bundle. Prints what does not
// hold; exit status 1 then.

#include <atomic>
#include <cmt/classifier.hpp>
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <new>
#include <optional>
#include <thread>

#include "backend.hpp"

namespace {

thread_local long allocations = 0;  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)
bool failed = false;                // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)

void expect(bool holds, const char* what) {
  if (holds) return;
  std::cout << "does not hold: " << what << '\n';
  failed = true;
}

template <typename Call>
long allocations_of(int times, const Call& call) {
  const long before = allocations;
  for (int i = 0; i < times; ++i) call();
  return allocations - before;
}

bool same(const std::vector<cmt::Prediction>& a, const std::vector<cmt::Prediction>& b) {
  bool equal = a.size() == b.size();
  for (std::size_t i = 0; equal && i < a.size(); ++i) {
    equal = a[i].index == b[i].index && a[i].label == b[i].label &&
            std::abs(a[i].probability - b[i].probability) < 1e-4F;
  }
  return equal;
}

template <typename Call>
bool refuses(const Call& call) {
  try {
    call();
  } catch (const cmt::InputError&) {
    return true;
  }
  return false;
}

void check_batches(cmt::Classifier& classifier, const std::vector<cmt::ImageView>& views) {
  std::vector<std::vector<cmt::Prediction>> single;
  for (const cmt::ImageView& view : views) single.push_back(classifier.classify(view));
  const auto& together = classifier.classify(views);
  expect(together.size() == views.size(), "a batch has a result for each image");
  for (std::size_t i = 0; i < views.size(); ++i) {
    expect(same(together[i], single[i]), "an image's result does not depend on its batch");
    expect(single[i].front().probability >= single[i].back().probability, "the best comes first");
  }
  expect(classifier.classify(std::vector<cmt::ImageView>{}).empty(), "no images, no results");
  const auto& scores = classifier.outputs(views);
  expect(scores.size() == 1 && scores.front().shape.front() == views.size(),
         "the outputs are of all images");
  for (std::size_t i = 0; i < views.size(); ++i) {
    const cmt::Prediction& best = single[i].front();
    const float score = scores.front().values[i * scores.front().shape.back() + best.index];
    expect(std::abs(score - best.score) < 1e-4F, "a prediction's score is the network's answer");
  }
  expect(refuses([&] { classifier.outputs(std::vector<cmt::ImageView>{}); }),
         "without images there are no outputs");
  expect(refuses([&] { classifier.classify(views.front(), 0); }), "no class at all is refused");
  expect(classifier.classify(views.front(), 1).size() == 1, "top_k is kept to");
  expect(classifier.classify(views.front(), 1000000).size() >= 2, "top_k may exceed the classes");
}

void check_allocations(const char* folder, const std::vector<cmt::ImageView>& views) {
  // One thread, so that the runtime allocates the same each time.
  cmt::Classifier classifier(folder, {"", 1});
  const cmt::Bundle bundle(folder);
  const cmt::Manifest& manifest = bundle.manifest();
  const cmt::Artefact* artefact = nullptr;
  for (const cmt::Artefact& one : manifest.artefacts) {
    if (one.file.path == classifier.artefact()) artefact = &one;
  }
  const auto model = cmt::load_model(bundle, *artefact, 1);
  const auto session = model->make_session();
  const auto inferences = static_cast<int>((views.size() + manifest.batch - 1) / manifest.batch);
  const auto infer = [&] {
    for (int i = 0; i < inferences; ++i) session->infer();
  };
  const auto classify = [&] { classifier.classify(views); };
  allocations_of(5, infer);
  allocations_of(5, classify);
  const long runtime = allocations_of(10, infer);
  const long all = allocations_of(10, classify);
  expect(all <= runtime, "classify allocates nothing beyond what the runtime does");
  if (all > runtime) std::cout << all << " allocations, " << runtime << " of the runtime\n";
}

void check_threads(const cmt::Classifier& classifier, const std::vector<cmt::ImageView>& views,
                   const std::vector<std::vector<cmt::Prediction>>& expected) {
  std::atomic<int> differences{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, own = classifier.share()]() mutable {
      for (int round = 0; round < 5; ++round) {
        for (std::size_t i = 0; i < views.size(); ++i) {
          if (!same(own.classify(views[i]), expected[i])) ++differences;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  expect(differences == 0, "threads with a Classifier each get what one gets alone");
}

void check_bad_views(cmt::Classifier& classifier, const cmt::ImageView& good) {
  const cmt::ImageView bad[] = {{nullptr, good.width, good.height, good.stride},
                                {good.pixels, 0, good.height, good.stride},
                                {good.pixels, good.width, -1, good.stride},
                                {good.pixels, good.width, good.height, good.stride - 1}};
  for (const cmt::ImageView& view : bad) {
    expect(refuses([&] { classifier.classify(view); }), "an unusable view is refused");
  }
}

void check_moved_from(const char* folder, const cmt::ImageView& view) {
  cmt::Classifier from(folder);
  cmt::Classifier to(std::move(from));
  // NOLINTBEGIN(bugprone-use-after-move): that is the question
  expect(refuses([&] { from.classify(view); }), "what was moved from classifies no more");
  expect(refuses([&] { from.outputs(view); }), "nor answers");
  expect(refuses([&] { from.share(); }), "nor is shared");
  expect(refuses([&] { from.labels(); }), "nor has labels");
  expect(refuses([&] { from.artefact(); }), "nor a file");
  expect(refuses([&] { from.image_range(); }), "nor a range");
  from = std::move(to);
  // NOLINTEND(bugprone-use-after-move)
  expect(!from.classify(view).empty(), "what was moved back does");
}

stack_t signal_stack() {
  stack_t stack{};
  sigaltstack(nullptr, &stack);
  return stack;
}

/// What another library's signal handlers run on, while two files are loaded and dropped in turn.
void check_signal_stack(const char* bundle) {
  const stack_t before = signal_stack();
  {
    std::optional<cmt::Classifier> first(std::in_place, bundle);
    const cmt::Classifier second(bundle);
    first.reset();
  }
  const stack_t after = signal_stack();
  expect(before.ss_sp == after.ss_sp && before.ss_flags == after.ss_flags,
         "the thread's signal stack is what it was");
}

}  // namespace

void* operator new(std::size_t size) {
  ++allocations;
  void* memory = std::malloc(size == 0 ? 1 : size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  check_signal_stack(argv[1]);
  cmt::Classifier classifier(argv[1]);
  std::vector<cmt::Image> images;
  std::vector<cmt::ImageView> views;
  for (int i = 2; i < argc; ++i) images.push_back(cmt::read_image(argv[i]));
  for (const cmt::Image& image : images) views.push_back(image.view());
  check_batches(classifier, views);
  check_allocations(argv[1], views);
  const std::vector<std::vector<cmt::Prediction>> expected = classifier.classify(views);
  check_threads(classifier, views, expected);
  check_bad_views(classifier, views.front());
  check_moved_from(argv[1], views.front());
  expect(refuses([&] { cmt::Classifier(argv[1], {"fp8"}); }), "an unknown artefact is refused");
  for (const int threads : {-1, 0, 4097}) {
    expect(refuses([&] { cmt::Classifier(argv[1], {"", threads}); }), "so are absurd threads");
  }
  return failed ? 1 : 0;
}
