/** @file
    The C interface: for C and for every language that calls C.

    A cmt_classifier is for one thread at a time; cmt_share makes another for each further thread.
    Different ones may be used by different threads at once. What was wrong and what is doubtful is
    kept for each thread. Nothing that C++ throws leaves these functions.

    Texts are UTF-8; those that are returned are one line each. A function that returns a
    cmt_status writes to what it was given for results only where that is CMT_OK. */
#ifndef CMT_CMT_H
#define CMT_CMT_H

/* NOLINTBEGIN(modernize-*): it is C */

#include <cmt/version.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** The tools' exit statuses. */
typedef enum cmt_status {
  CMT_OK = 0,
  CMT_INPUT_ERROR = 2,  /**< a bundle, an image or an argument is unusable */
  CMT_MACHINE_ERROR = 3 /**< the machine failed, such as for lack of memory */
} cmt_status;

/** What the bytes of an image are; see cmt::PixelFormat. */
typedef enum cmt_pixel_format {
  CMT_RGB = 0,
  CMT_BGR = 1,
  CMT_GREY = 2,
  CMT_NV12 = 3
} cmt_pixel_format;

/** A bundle that is open. */
typedef struct cmt_classifier cmt_classifier;

/** How a bundle is opened; all zeros are the defaults. */
typedef struct cmt_options {
  const char* file;      /**< "int8" or "openvino/int8"; NULL: the smallest precision that runs */
  const char* device;    /**< such as "GPU", "NPU" or "AUTO" of OpenVINO's; NULL: the CPU */
  int threads;           /**< of the CPU, 1 to 4096; 0: as the file was tuned, else all */
  const char* trust_key; /**< PEM file of the public key that it must be signed with; NULL: none */
  int unsigned_engines;  /**< not 0: runs engines of a bundle without a signature */
} cmt_options;

/** Somebody else's 8-bit pixels, rows from the top; see cmt::ImageView. */
typedef struct cmt_image {
  const uint8_t* pixels;
  int width;
  int height;
  size_t stride;         /**< bytes from one row to the next */
  int format;            /**< a cmt_pixel_format */
  const uint8_t* chroma; /**< NV12's second plane; NULL: it follows the first */
} cmt_image;

/** One class for one image. */
typedef struct cmt_prediction {
  size_t index;
  const char* label; /**< "" without labels; valid until all that share the bundle are closed */
  float probability; /**< softmax of the scores, 0 to 1 */
  float score;       /**< the network's raw answer, a logit */
} cmt_prediction;

/** The version of the library that is loaded; CMT_VERSION is that of this header. */
CMT_API const char* cmt_version(void);

/** Opens a bundle, checks the sha256 of every file in it and loads one. `options` may be NULL.
    What comes out is to be closed. */
CMT_API cmt_status cmt_open(const char* bundle, const cmt_options* options, cmt_classifier** out);

/** Another classifier for another thread, on the same loaded file; to be closed as well. */
CMT_API cmt_status cmt_share(const cmt_classifier* classifier, cmt_classifier** out);

/** Lets go of a classifier, in any order with those that share its file; NULL does nothing. */
CMT_API void cmt_close(cmt_classifier* classifier);

/** The `top` most probable classes of a JPEG or PNG file, best first. `best` has room for `top`;
    `found` gets how many there are, fewer where the network has fewer classes. */
CMT_API cmt_status cmt_classify_file(cmt_classifier* classifier, const char* path, size_t top,
                                     cmt_prediction* best, size_t* found);

/** The same of such a file's bytes. */
CMT_API cmt_status cmt_classify_bytes(cmt_classifier* classifier, const uint8_t* data, size_t size,
                                      size_t top, cmt_prediction* best, size_t* found);

/** The same of pixels. */
CMT_API cmt_status cmt_classify_pixels(cmt_classifier* classifier, const cmt_image* image,
                                       size_t top, cmt_prediction* best, size_t* found);

/** Path within the bundle of the file that runs; NULL of NULL. */
CMT_API const char* cmt_artefact(const cmt_classifier* classifier);

/** How many labels the bundle has; 0 without, and of NULL. */
CMT_API size_t cmt_label_count(const cmt_classifier* classifier);

/** A class's label; NULL where there is none. */
CMT_API const char* cmt_label(const cmt_classifier* classifier, size_t index);

/** Why this thread's last function did not return CMT_OK, and what to do; "" where it did. Valid
    until the thread calls another function that returns a cmt_status. */
CMT_API const char* cmt_last_error(void);

/** What of this thread's last image was not read as its owner may have meant it, such as values
    that were clipped; "" where there is nothing of the kind. As long as cmt_last_error. */
CMT_API const char* cmt_last_warning(void);

#ifdef __cplusplus
}
#endif

/* NOLINTEND(modernize-*) */

#endif
