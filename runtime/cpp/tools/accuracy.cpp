#include "accuracy.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cmt/error.hpp>
#include <cmt/image.hpp>
#include <iostream>
#include <map>
#include <numeric>
#include <tuple>

#include "../src/answers.hpp"
#include "../src/files.hpp"
#include "../src/text.hpp"
#include "idx_images.hpp"
#include "progress.hpp"
#include "statistics.hpp"

namespace cmt::tools {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 30;  // as of src/image.cpp
constexpr std::size_t kTop = 5;
constexpr std::size_t kShard = 256;  // images between two times that progress is kept

/// What is known of an image before any file is asked.
struct Known {
  std::optional<std::size_t> label;
  std::optional<std::size_t> row;  ///< among torch's answers
};

/// What is counted of a file's answers, to the images that torch answered and to the others.
struct Counts {
  std::size_t images = 0;
  std::size_t right = 0;
  std::size_t in_top = 0;
  std::size_t same = 0;  ///< as torch's first answer; as the FP32 file's, of others
  std::size_t lost = 0;
  std::size_t gained = 0;
};

Json as_json(const Counts& c) { return {c.images, c.right, c.in_top, c.same, c.lost, c.gained}; }

Counts counts_of(const Json& c) { return {c.at(0), c.at(1), c.at(2), c.at(3), c.at(4), c.at(5)}; }

/// A file and what is counted of its answers.
struct Tally {
  const Artefact* artefact;
  std::unique_ptr<Session> session;
  Counts known;
  Counts unknown;
  double difference = 0;  ///< largest from torch's logits
  double scale = 1e-30;   ///< largest of torch's
};

/// The first classes, the best first; of equal ones the lower index comes first.
std::vector<std::size_t> best(const float* logits, std::size_t classes) {
  std::vector<std::size_t> order(classes);
  std::iota(order.begin(), order.end(), std::size_t{0});
  const std::size_t count = std::min(kTop, classes);
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
                    [logits](std::size_t a, std::size_t b) {
                      return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
                    });
  order.resize(count);
  return order;
}

void count(const std::vector<std::size_t>& order, std::optional<std::size_t> label, bool same,
           Counts* counts) {
  ++counts->images;
  counts->same += same ? 1 : 0;
  if (!label) return;
  counts->right += order.front() == *label ? 1 : 0;
  counts->in_top += std::find(order.begin(), order.end(), *label) != order.end() ? 1 : 0;
}

/// One file's answer to an image that torch answered.
void count_beside_torch(const Answers& answers, const Known& image, const float* logits,
                        const std::vector<std::size_t>& order, Tally* file) {
  const std::int32_t* theirs = answers.classes(*image.row);
  const auto first = static_cast<std::size_t>(theirs[0]);
  count(order, image.label, order.front() == first, &file->known);
  if (image.label) {
    const bool before = first == *image.label;
    const bool now = order.front() == *image.label;
    file->known.lost += before && !now ? 1 : 0;
    file->known.gained += now && !before ? 1 : 0;
  }
  for (std::size_t i = 0; i < answers.kept(); ++i) {
    const double torch = answers.logits(*image.row)[i];
    file->difference = std::max(file->difference, std::abs(logits[theirs[i]] - torch));
    file->scale = std::max(file->scale, std::abs(torch));
  }
}

/// The files, asked together for each batch.
class Questions {
 public:
  Questions(const Bundle& bundle, const std::vector<Asked>& files, int threads)
      : answers_(bundle), batch_(bundle.manifest().batch), preprocessor_(preprocessing(bundle)) {
    for (const Asked& file : files) {
      files_.push_back({file.artefact, file.model->make_session(), {}, {}, 0, 1e-30});
    }
    for (const Artefact& artefact : bundle.manifest().artefacts) {
      if (artefact.precision != "fp32" || not_runnable(bundle, artefact)) continue;
      if (!runs_on_cpu(artefact)) continue;
      reference_ = load_model(bundle, artefact, threads)->make_session();
      break;
    }
    const std::size_t labels = bundle.manifest().labels.size();
    for (const Tally& file : files_) {
      const std::vector<std::size_t>& shape = file.session->outputs().front().shape;
      classes_ = shape.size() == 2 ? shape[1] : 0;
      if (classes_ == 0 || answers_.largest_class() >= static_cast<std::int64_t>(classes_) ||
          (labels != 0 && labels != classes_)) {
        throw InputError(file.artefact->file.path +
                         " does not answer for the bundle's classes: export it again");
      }
    }
  }

  const Answers& answers() const { return answers_; }
  bool is_waiting() const { return !pending_.empty(); }

  /// What was counted so far, and back again.
  Json counted() const {
    Json all = Json::array();
    for (const Tally& file : files_) {
      all.push_back({file.difference, file.scale, as_json(file.known), as_json(file.unknown)});
    }
    return all;
  }
  void count_from(const Json& all) {
    for (std::size_t i = 0; i < files_.size(); ++i) {
      Tally& file = files_[i];
      file.difference = all.at(i).at(0);
      file.scale = all.at(i).at(1);
      file.known = counts_of(all.at(i).at(2));
      file.unknown = counts_of(all.at(i).at(3));
    }
  }
  const std::vector<Tally>& files() const { return files_; }
  bool has_reference() const { return reference_ != nullptr; }

  void ask(const Image& image, const Known& known) {
    const std::uint8_t* pixels = preprocessor_.resize(image.view());
    for (const Tally& file : files_) {
      preprocessor_.feed(pixels, file.session->input(), pending_.size());
    }
    if (reference_) preprocessor_.feed(pixels, reference_->input(), pending_.size());
    pending_.push_back(known);
    if (pending_.size() == batch_) flush();
  }

  /// Answers what is left; places of the batch that are not full hold earlier images.
  void flush() {
    if (pending_.empty()) return;
    const bool unknown = std::any_of(pending_.begin(), pending_.end(),
                                     [](const Known& image) { return !image.row; });
    if (unknown && reference_) reference_->infer();
    for (Tally& file : files_) answer(&file);
    pending_.clear();
  }

 private:
  static const Preprocessing& preprocessing(const Bundle& bundle) {
    return bundle.manifest().preprocessing;
  }

  void answer(Tally* file) {
    file->session->infer();
    for (std::size_t i = 0; i < pending_.size(); ++i) {
      const float* logits = file->session->outputs().front().values + i * classes_;
      if (!std::all_of(logits, logits + classes_, [](float x) { return std::isfinite(x); })) {
        throw InputError(file->artefact->file.path + " answers with NaN or infinity");
      }
      const std::vector<std::size_t> order = best(logits, classes_);
      if (pending_[i].row) {
        count_beside_torch(answers_, pending_[i], logits, order, file);
      } else {
        const bool same =
            reference_ &&
            order.front() ==
                best(reference_->outputs().front().values + i * classes_, classes_).front();
        count(order, pending_[i].label, same, &file->unknown);
      }
    }
  }

  Answers answers_;
  std::size_t batch_;
  Preprocessor preprocessor_;
  std::vector<Tally> files_;
  std::unique_ptr<Session> reference_;
  std::size_t classes_ = 0;
  std::vector<Known> pending_;
};

double share(std::size_t part, std::size_t all) {
  return static_cast<double>(part) / static_cast<double>(all);
}

/// The report's `accuracy` of images with labels.
Json accuracy(const Counts& known, const Counts& unknown, Json* reasons) {
  const Counts& counts = known.images != 0 ? known : unknown;
  Json found{{"top1", 100 * share(counts.right, counts.images)},
             {"top5", 100 * share(counts.in_top, counts.images)},
             {"images", counts.images}};
  if (known.images != 0) {
    const Paired paired = compare_paired(known.lost, known.gained, known.images);
    found["drop_pp"] = paired.drop_pp;
    found["drop_ci95"] = {paired.low, paired.high};
    found["agreement"] = share(known.same, known.images);
    found["mcnemar_p"] = paired.mcnemar_p;
    found["resolvable_pp"] = paired.resolvable_pp;
    return found;
  }
  for (const char* name : {"drop_pp", "drop_ci95", "agreement", "mcnemar_p"}) {
    found[name] = nullptr;
    (*reasons)[std::string("accuracy.") + name] =
        "torch's answers to these images are not in the bundle";
  }
  return found;
}

Json row(const Tally& file, bool labelled, bool has_reference) {
  Json fields{{"accuracy", nullptr}};
  Json reasons = Json::object();
  if (file.known.images != 0) {
    fields["beside_torch"] = {{"images", file.known.images},
                              {"agreement", share(file.known.same, file.known.images)},
                              {"max_rel", file.difference / file.scale}};
  }
  if (const Counts& unknown = file.unknown; unknown.images != 0) {
    const Json top1 = labelled ? Json(100 * share(unknown.right, unknown.images)) : Json();
    const Json same = has_reference ? Json(share(unknown.same, unknown.images)) : Json();
    fields["unknown_images"] = {{"images", unknown.images}, {"top1", top1}, {"agreement", same}};
  }
  if (labelled) {
    fields["accuracy"] = accuracy(file.known, file.unknown, &reasons);
  } else {
    reasons["accuracy"] = "the images are in no class folders";
  }
  fields["reasons"] = reasons;
  return fields;
}

ImageFolder list(const std::filesystem::path& folder) {
  return holds_idx(folder) ? list_idx(folder) : list_images(folder);
}

std::string content_of(const FoundImage& image) {
  return image.grey.empty() ? read_file(image.path, kMostBytes) : image.grey;
}

/// sha256 of an image's own bytes, as `digest` of calib_data/sources.py.
std::string digest_of(const FoundImage& image) {
  try {
    return image.grey.empty() ? sha256_file(image.path, kMostBytes) : sha256(image.grey);
  } catch (const InputError&) {
    return "unreadable";
  }
}

/// `count` of the images, as `choose` of measure/on_device.py; 0 takes all.
std::vector<FoundImage> choose(std::vector<FoundImage> images, std::size_t count,
                               const Answers& answers) {
  if (count == 0 || count >= images.size()) return images;
  std::vector<std::pair<std::string, std::size_t>> digests;
  for (std::size_t i = 0; i < images.size(); ++i) digests.emplace_back(digest_of(images[i]), i);
  std::sort(digests.begin(), digests.end());
  std::map<std::pair<bool, std::string>, std::size_t> turns;
  std::vector<std::tuple<bool, std::size_t, std::string, std::size_t>> places;
  for (const auto& [digest, i] : digests) {
    const bool unknown = !answers.row(digest);
    const std::size_t turn = turns[{unknown, images[i].folder.value_or("")}]++;
    places.emplace_back(unknown, turn, digest, i);
  }
  std::sort(places.begin(), places.end());
  std::vector<std::size_t> taken;
  for (std::size_t i = 0; i < count; ++i) taken.push_back(std::get<3>(places[i]));
  std::sort(taken.begin(), taken.end());
  std::vector<FoundImage> chosen;
  for (const std::size_t i : taken) chosen.push_back(std::move(images[i]));
  return chosen;
}

/// By folder, its class. Throws InputError for a folder of none.
std::map<std::string, std::size_t> classes_of(const std::vector<FoundImage>& images,
                                              const Answers& answers) {
  std::map<std::string, std::size_t> classes;
  for (const FoundImage& image : images) {
    if (image.folder && classes.count(*image.folder) == 0) {
      classes[*image.folder] = answers.class_of(*image.folder);
    }
  }
  return classes;
}

/// Changes whenever other images would be asked, or other files, or these otherwise.
std::string identity(const std::vector<FoundImage>& images, const Question& question,
                     const std::vector<Asked>& files) {
  std::string words = question.run;
  for (const Asked& file : files) words += '\n' + file.artefact->file.path;
  for (const FoundImage& image : images) {
    words += '\n' + image.path.string();
    std::error_code error;
    const bool own = image.grey.empty();
    words += ' ' + (own ? std::to_string(std::filesystem::file_size(image.path, error))
                        : sha256(image.grey));
    const auto written = std::filesystem::last_write_time(image.path, error);
    if (own) words += ' ' + std::to_string(written.time_since_epoch().count());
  }
  return words;
}

Image decoded(const FoundImage& image, const ImageFolder& from, const std::string& content,
              const std::optional<ImageRange>& range) {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(content.data());
  if (image.grey.empty()) return decode_image(bytes, content.size(), range);
  Image made;
  made.width = from.width;
  made.height = from.height;
  for (const char value : content) made.pixels.insert(made.pixels.end(), 3, std::uint8_t(value));
  return made;
}

/// What is counted of images as they pass.
struct Passed {
  std::size_t done = 0;  ///< of the images that are to be asked
  std::size_t read = 0;
  std::size_t unknown = 0;
  std::vector<std::string> remarks;
};

/// Goes on where an earlier run was killed, which the progress has if it is whole.
Passed resumed(const Progress& progress, Questions* questions) {
  Passed passed;
  try {
    const Json found = progress.read();
    if (!found.is_object()) return passed;
    passed = {found.at("done"), found.at("read"), found.at("unknown"), found.at("remarks")};
    questions->count_from(found.at("counted"));
    std::cerr << "goes on behind image " << passed.done << '\n';
    return passed;
  } catch (const Json::exception&) {
    progress.remove();
    throw InputError("what an earlier run kept is damaged and was removed: start again");
  }
}

}  // namespace

Answered measure_accuracy(const Bundle& bundle, const Question& question,
                          const std::vector<Asked>& files) {
  const ImageFolder found = list(question.folder);
  Questions questions(bundle, files, question.threads);
  const std::vector<FoundImage> images = choose(found.images, question.count, questions.answers());
  const auto classes = classes_of(images, questions.answers());
  const Progress progress(identity(images, question, files));
  Passed passed = resumed(progress, &questions);
  for (std::size_t kept = passed.done; passed.done < images.size();) {
    if (!questions.is_waiting() && passed.done >= kept + kShard) {
      kept = passed.done;
      progress.write({{"done", kept},
                      {"read", passed.read},
                      {"unknown", passed.unknown},
                      {"remarks", passed.remarks},
                      {"counted", questions.counted()}});
    }
    const FoundImage& one = images[passed.done++];
    Known known;
    if (one.folder) known.label = classes.at(*one.folder);
    Image image;
    try {
      const std::string content = content_of(one);
      known.row = questions.answers().row(sha256(content));
      image = decoded(one, found, content, bundle.manifest().image_range);
    } catch (const InputError& error) {
      passed.remarks.push_back(printable(one.path.string()) + ": " + error.what());
      continue;
    }
    questions.ask(image, known);
    ++passed.read;
    passed.unknown += known.row ? 0 : 1;
  }
  questions.flush();
  progress.remove();
  const std::string where = question.folder.string();
  if (passed.read == 0) throw InputError("no image of " + where + " can be decoded");
  Answered answered;
  answered.remarks = passed.remarks;
  answered.images = {{"source", printable(where)},
                     {"images", passed.read},
                     {"unknown", passed.unknown},
                     {"skipped", passed.remarks.size()},
                     {"left_out", found.left_out}};
  const bool labelled = images.front().folder.has_value();
  for (const Tally& file : questions.files()) {
    answered.rows.push_back(row(file, labelled, questions.has_reference()));
  }
  return answered;
}

}  // namespace cmt::tools
