#include "image_folder.hpp"

#include <algorithm>
#include <cctype>
#include <cmt/error.hpp>
#include <fstream>
#include <set>

namespace cmt::tools {
namespace {

namespace fs = std::filesystem;

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

/// Whether a name is a system's or a program's, and nobody's image.
bool is_system(const fs::path& path) {
  static const std::set<std::string> kKnown{
      "@eadir",     "@tmp",        "@recycle",
      "#recycle",   "#snapshot",   "$recycle.bin",
      "lost+found", "__macosx",    "system volume information",
      "thumbs.db",  "ehthumbs.db", "desktop.ini"};
  const std::string name = lower(path.filename().string());
  return kKnown.count(name) != 0 || name.rfind('.', 0) == 0 ||
         name.rfind("synofile_thumb_", 0) == 0;
}

bool has_image_content(const fs::path& path) {
  std::string head(8, '\0');
  std::ifstream(path, std::ios::binary).read(head.data(), 8);
  return head.substr(0, 3) == "\xFF\xD8\xFF" || head == std::string("\x89PNG\r\n\x1A\n", 8);
}

/// Takes a file, or counts it as left out.
void take(const fs::path& path, const std::optional<std::string>& folder, ImageFolder* found) {
  const bool image = !is_system(path) && fs::is_regular_file(path) &&
                     (has_image_content(path) || named_as_image(path));
  if (image) {
    found->images.push_back({path, folder, {}});
  } else {
    ++found->left_out;
  }
}

void take_below(const fs::path& root, ImageFolder* found) {
  for (auto at = fs::recursive_directory_iterator(root); at != fs::end(at); ++at) {
    if (!at->is_directory()) {
      take(at->path(), root.filename().string(), found);
    } else if (at->is_symlink() || is_system(at->path())) {
      at.disable_recursion_pending();
      ++found->left_out;
    }
  }
}

}  // namespace

bool named_as_image(const fs::path& path) {
  static const std::set<std::string> kEndings{".jpg", ".jpeg", ".png",  ".webp", ".bmp",
                                              ".gif", ".tif",  ".tiff", ".ppm",  ".pgm"};
  return kEndings.count(lower(path.extension().string())) != 0;
}

ImageFolder list_images(const fs::path& root) {
  std::error_code error;
  if (!fs::is_directory(root, error)) {
    throw InputError("no image folder at " + root.string() + ": give a folder of images");
  }
  ImageFolder within;
  ImageFolder loose;
  for (const auto& entry : fs::directory_iterator(root)) {
    if (entry.is_directory() && !is_system(entry.path())) {
      take_below(entry.path(), &within);
    } else {
      take(entry.path(), std::nullopt, &loose);
    }
  }
  // Beside class folders, loose images do not count.
  if (within.images.empty()) {
    within.images.swap(loose.images);
  }
  within.left_out += loose.left_out + loose.images.size();
  if (within.images.empty()) {
    throw InputError("no images in " + root.string() + ": expected class/name.jpg or name.jpg");
  }
  std::sort(within.images.begin(), within.images.end(),
            [](const FoundImage& a, const FoundImage& b) { return a.path < b.path; });
  return within;
}

}  // namespace cmt::tools
