#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace cmt::tools {

struct FoundImage {
  std::filesystem::path path;
  std::optional<std::string> folder;  ///< its class; none where the images are in no class folders
  std::string grey;                   ///< its pixels, of one within an IDX file
};

struct ImageFolder {
  std::vector<FoundImage> images;  ///< files that may be images, sorted
  std::size_t left_out = 0;
  int height = 0;  ///< of those within an IDX file
  int width = 0;
};

/// The images of a folder by the rules of calib_data/listing.py: `class/.../name`, or loose ones
/// where no class folder has any; without what is hidden or a system's. Linked folders within a
/// class are left out. Throws InputError where there is none.
ImageFolder list_images(const std::filesystem::path& root);

/// Whether a file is meant as an image by its name.
bool named_as_image(const std::filesystem::path& path);

}  // namespace cmt::tools
