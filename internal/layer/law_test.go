package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// parts of names, so few that entries meet.
var parts = []string{"a", "b", "c", "a/b", "b/c", "a/b/c", "..", "../..", "/", "../canary", "canary/f", ".wh.a", ".wh.b", ".wh..wh..opq", ".wh..wh.plnk", "c/.wh.a"}

// entriesOf makes a layer of any bytes, four for each entry.
func entriesOf(data []byte, clean bool) (entries []entry) {
	kinds := []byte{tar.TypeReg, tar.TypeReg, tar.TypeDir, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeFifo}
	name := func(a, b byte) string {
		first, second := parts[int(a)%len(parts)], parts[int(b)%len(parts)]
		if b >= 128 {
			return first
		}
		return first + "/" + second
	}
	for ; len(data) >= 5; data = data[5:] {
		h := tar.Header{Typeflag: kinds[int(data[0])%len(kinds)], Name: name(data[1], data[2]), Mode: 0o644 | int64(data[0])&0o7000>>3,
			ModTime: time.Unix(1_600_000_000+int64(data[0]), 0)}
		e := entry{Header: h}
		if h.Typeflag != tar.TypeDir { // what archive/tar packs
			e.Name = strings.TrimRight("./"+h.Name, "/")
		}
		switch h.Typeflag {
		case tar.TypeReg:
			e.content = fmt.Sprint(data[3])
			e.Size = int64(len(e.content))
		case tar.TypeDir:
			e.Mode = 0o755
			if data[3] > 250 {
				e.Mode = 0o2755
			}
		case tar.TypeSymlink, tar.TypeLink:
			e.Linkname = name(data[3], data[4])
		case tar.TypeChar:
			e.Devmajor, e.Devminor = int64(data[3])%2, int64(data[4])%4
		}
		if clean && strings.Contains(inRoot(e.Name), "wh") && e.Typeflag != tar.TypeReg {
			continue
		}
		entries = append(entries, e)
	}
	return entries
}

// TestOntoIsWhatAnOverlayShows mounts an overlay over unpacked layers and
// compares it with the same layers unpacked one onto the other.
func TestOntoIsWhatAnOverlayShows(t *testing.T) {
	flag.Set("rapid.nofailfile", "true")
	good := 0
	rapid.Check(t, func(rt *rapid.T) {
		parent, err := os.MkdirTemp("", "law")
		must(t, err)
		defer os.RemoveAll(parent)
		onto, merged := filepath.Join(parent, "onto"), filepath.Join(parent, "merged")
		must(t, os.Mkdir(onto, 0o755))
		must(t, os.Mkdir(merged, 0o755))
		var lower []string
		var layers []string
		for i := range rapid.IntRange(1, 3).Draw(rt, "layers") {
			entries := entriesOf(rapid.SliceOfN(rapid.Byte(), 5, 60).Draw(rt, "layer"), true)
			// A directory that is implied has the times of its making.
			entries = append(withParents(entries), directory("/"))
			for _, e := range entries {
				layers = append(layers, fmt.Sprintf("%d %c %s -> %s", i, e.Typeflag, e.Name, e.Linkname))
			}
			archive := pack(t, entries...)
			dir := filepath.Join(parent, fmt.Sprint("layer", i))
			must(t, os.Mkdir(dir, 0o755))
			errOverlay, errOnto := unpackTo(dir, Overlay, archive), unpackTo(onto, Onto, archive)
			if (errOverlay == nil) != (errOnto == nil) {
				rt.Fatalf("overlay: %v\nonto: %v\n%s", errOverlay, errOnto, strings.Join(layers, "\n"))
			}
			if errOverlay != nil {
				return
			}
			opaque, err := Opaque(dir)
			must(t, err)
			if opaque {
				lower = nil
			}
			lower = append([]string{dir}, lower...)
		}
		good++
		if len(lower) == 1 { // an overlay without an upper directory has two
			empty := filepath.Join(parent, "empty")
			must(t, os.Mkdir(empty, 0o755))
			lower = append(lower, empty)
		}
		must(t, unix.Mount("overlay", merged, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(lower, ":")))
		defer unix.Unmount(merged, unix.MNT_DETACH)
		if diff := cmp.Diff(tree(t, merged), tree(t, onto)); diff != "" {
			rt.Fatalf("overlay -, onto +:\n%s\n%s", diff, strings.Join(layers, "\n"))
		}
	})
	t.Logf("%d stacks of layers", good)
}

// withParents lists every directory before what is in it, unless the layer has
// something else there.
func withParents(entries []entry) (all []entry) {
	seen := map[string]bool{}
	for _, e := range entries {
		name := inRoot(e.Name)
		for i := range name {
			if name[i] == '/' && !seen[name[:i]] && !strings.Contains(name[:i], ".wh.") {
				seen[name[:i]] = true
				all = append(all, directory(name[:i]))
			}
		}
		seen[name] = true
		all = append(all, e)
	}
	return all
}

// FuzzUnpack unpacks any bytes, as they are and as a list of entries: nothing
// beside the directory changes, and what is refused is refused as invalid.
func FuzzUnpack(f *testing.F) {
	for _, seed := range [][]byte{
		pack(f, symlink("s", "../canary"), file("s/f", "x"), hardlink("h", "s/f")),
		pack(f, file("a/b", strings.Repeat("x", 2000)), directory("/a"), file("a/.wh..wh..opq", ""), device("b", tar.TypeChar, 0, 0)),
		pack(f, file(strings.Repeat("long", 200), "x").with(func(h *tar.Header) { h.PAXRecords = map[string]string{"SCHILY.xattr.user.a": "b"} })),
	} {
		f.Add(seed, false, false)
		f.Add(seed, false, true)
	}
	f.Add([]byte{4, 0, 200, 9, 200, 0, 0, 10, 1, 1, 5, 1, 200, 0, 10}, true, false)
	f.Add([]byte{4, 0, 200, 9, 200, 0, 0, 10, 1, 1, 5, 1, 200, 0, 10}, true, true)
	f.Fuzz(func(t *testing.T, archive []byte, list, onto bool) {
		if list {
			archive = loose(entriesOf(archive, false))
		}
		form := Overlay
		if onto {
			form = Onto
		}
		parent := t.TempDir()
		dir := filepath.Join(parent, "layer")
		must(t, os.Mkdir(dir, 0o755))
		c := newCanary(t, parent)
		stats, err := Unpack(context.Background(), dir, bytes.NewReader(archive), Options{Form: form, MaxBytes: 1 << 20, MaxEntries: 2000})
		if err != nil && !errors.Is(err, berth.ErrInvalid) {
			t.Error(err)
		}
		if stats.Bytes > 1<<20 || stats.Entries > 2001 {
			t.Errorf("limits do not hold: %+v", stats)
		}
		c.check(t)
	})
}

// loose packs what can be packed.
func loose(entries []entry) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if w.WriteHeader(&e.Header) == nil {
			w.Write([]byte(e.content))
		}
	}
	w.Close()
	return b.Bytes()
}
