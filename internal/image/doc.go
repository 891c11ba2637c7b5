// Package image keeps images: pulled from registries, loaded from archives,
// imported from trees. It is a service beside the engine and knows nothing of
// containers or networks.
//
// A store is one directory, an OCI image layout that other tools can read
// (skopeo copy oci:DIR:NAME; skopeo passes over images in Docker's own media
// types, which are kept as they came so that their digests stay: Save writes
// those for it), with each layer unpacked beside it:
//
//	index.json            what there is: a descriptor for each name
//	blobs/sha256/HEX      manifests, configurations and layers as they came
//	layers/HEX/fs         a layer unpacked, a lower directory of an overlay;
//	                      HEX is of its diff id; not there where the file
//	                      system cannot hold one
//	layers/HEX/size       the bytes of its files
//	tmp/                  what is being made
//	locks/                who does what
//	boot                  the boot in which the store was last written to
//
// index.json alone says what there is. Blobs and layers are made in tmp,
// verified, and renamed into place; index.json is replaced last, after the
// disk has them. So a crash leaves an image or nothing of it, and what
// index.json does not reach is garbage: it is kept for the next try of a pull
// that was cut off, and removed when a pull or Prune has ended. A power cut
// can hollow what was not yet on the disk, so the first writer after a boot
// removes the garbage before it begins.
//
// What a registry or an archive says is not believed: digests and sizes of
// what is compressed, the diff ids of what is not, media types and names are
// all checked, and nothing is used before.
package image
