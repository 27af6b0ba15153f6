#include "answers.hpp"

#include <algorithm>
#include <cmt/error.hpp>

namespace cmt {
namespace {

constexpr std::size_t kDigest = 32;

std::string hexadecimal(const std::uint8_t* bytes) {
  constexpr const char* kDigits = "0123456789abcdef";
  std::string text;
  for (std::size_t i = 0; i < kDigest; ++i) {
    text += kDigits[bytes[i] >> 4U];
    text += kDigits[bytes[i] & 15U];
  }
  return text;
}

}  // namespace

Answers::Answers(const Bundle& bundle) : labels_(bundle.manifest().labels) {
  const auto& files = bundle.manifest().answers;
  if (!files) return;
  folders_ = files->folders;
  const auto images = parse_npy_bytes(bundle.read(files->images), files->images.path);
  classes_ = parse_npy_ints(bundle.read(files->classes), files->classes.path);
  logits_ = parse_npy_floats(bundle.read(files->logits), files->logits.path);
  const bool good = images.shape.size() == 2 && images.shape[1] == kDigest &&
                    classes_.shape.size() == 2 && classes_.shape == logits_.shape &&
                    classes_.shape[0] == images.shape[0] &&
                    *std::min_element(classes_.values.begin(), classes_.values.end()) >= 0;
  if (!good) {
    throw InputError("the arrays beside " + files->images.path +
                     " do not belong together: export the bundle again");
  }
  kept_ = classes_.shape[1];
  largest_class_ = *std::max_element(classes_.values.begin(), classes_.values.end());
  for (std::size_t i = 0; i < images.shape[0]; ++i) {
    rows_[hexadecimal(images.values.data() + i * kDigest)] = i;
  }
}

std::optional<std::size_t> Answers::row(const std::string& sha256) const {
  const auto found = rows_.find(sha256);
  if (found == rows_.end()) return std::nullopt;
  return found->second;
}

std::size_t Answers::class_of(const std::string& folder) const {
  const auto known = folders_.find(folder);
  if (known != folders_.end() && (labels_.empty() || known->second < labels_.size())) {
    return known->second;
  }
  std::vector<std::size_t> found;
  for (std::size_t i = 0; i < labels_.size(); ++i) {
    std::string name = labels_[i];
    std::replace(name.begin(), name.end(), '/', '_');
    if (name == folder) found.push_back(i);
  }
  if (found.size() == 1) return found.front();
  throw InputError("--val-data has a folder '" + folder.substr(0, 200) + "', which " +
                   (found.empty() ? "is no class" : "stands for several classes") +
                   " of the bundle: name the folders as they were at the export, or after the "
                   "labels");
}

}  // namespace cmt
