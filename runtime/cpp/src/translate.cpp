#include "translate.hpp"

#include <algorithm>
#include <array>
#include <new>
#include <string_view>

namespace cmt {
namespace {

// How runtimes say it that wrap the exception; those of cmt/errors.py that C++ meets.
constexpr std::array<std::string_view, 4> kOutOfMemory{
    "allocate memory", "bad_alloc", "bad allocation", "could not create a primitive"};

bool is_out_of_memory(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr) return true;
  const std::string_view words = error.what();
  return std::any_of(kOutOfMemory.begin(), kOutOfMemory.end(), [&](std::string_view said) {
    return words.find(said) != std::string_view::npos;
  });
}

}  // namespace

void rethrow_as_error(const std::string& name, const std::exception& error, const char* advice) {
  constexpr std::size_t kLongest = 300;
  if (is_out_of_memory(error)) throw MachineError(name + ": out of memory: free some");
  throw InputError(name + " cannot be used (" + std::string(error.what()).substr(0, kLongest) +
                   "): " + advice);
}

}  // namespace cmt
