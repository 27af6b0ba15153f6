#pragma once

#include "image_folder.hpp"

namespace cmt::tools {

/// Whether a folder holds test images in MNIST's form: t10k-images-idx3-ubyte.gz and its labels.
bool holds_idx(const std::filesystem::path& folder);

/// These images, each of the class of Fashion-MNIST that its label stands for, as `IdxImages` of
/// calib_data/sources.py. Throws InputError for damaged files.
ImageFolder list_idx(const std::filesystem::path& folder);

}  // namespace cmt::tools
