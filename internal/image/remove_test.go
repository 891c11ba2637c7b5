package image

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"berth"
)

func nobody(string) []string { return nil }

// files lists what there is in a store, beside its locks.
func files(t *testing.T, s *Store) (paths []string) {
	t.Helper()
	for _, f := range tree(t, s.dir) {
		if name, _, _ := strings.Cut(f, " "); !strings.HasPrefix(name, "locks") {
			paths = append(paths, name)
		}
	}
	return paths
}

// bare is what is left in a store of which everything was removed.
var bare = []string{"blobs/", "blobs/sha256/", "boot", "index.json", "index.json.new", "layers/", "oci-layout", "tmp/"}

func TestRemove(t *testing.T) {
	reg, s := newServer(t), open(t, Options{})
	ref := reg.push(t, "busybox", busybox(t))
	img := pull(t, s, ref)
	ctx := t.Context()
	for _, name := range []string{"web", "web:2", "docker.io/library/web:3"} {
		if err := s.Tag(ctx, ref, name); err != nil {
			t.Fatal(err)
		}
	}
	used := func(id string) []string {
		if id == img.ID {
			return []string{"one", "two"}
		}
		return nil
	}
	for _, tt := range []struct {
		ref               string
		force             bool
		used              Users
		untagged, deleted []string
		err               error
	}{
		{"nothing", false, nobody, nil, nil, berth.ErrNotFound},
		{"web:2", false, used, []string{"docker.io/library/web:2"}, nil, nil},
		{img.ID, false, nobody, nil, nil, berth.ErrConflict},
		{"web:3", false, nobody, []string{"docker.io/library/web:3"}, nil, nil},
		{"web", false, nobody, []string{"docker.io/library/web:latest"}, nil, nil},
		{ref, false, used, nil, nil, berth.ErrInUse},
		{ref, true, used, []string{ref}, nil, nil},
		{img.ID, true, used, nil, nil, berth.ErrInUse},
		{img.ID[7:19], false, nobody, img.RepoDigests, []string{img.ID}, nil},
	} {
		untagged, deleted, err := s.Remove(ctx, tt.ref, tt.force, tt.used)
		if !slices.Equal(untagged, tt.untagged) || !slices.Equal(deleted, tt.deleted) || !errors.Is(err, tt.err) {
			t.Errorf("remove %s: %q, %q, %v; want %q, %q, %v", tt.ref, untagged, deleted, err, tt.untagged, tt.deleted, tt.err)
		}
		if errors.Is(err, berth.ErrInUse) && !strings.Contains(err.Error(), "one, two") {
			t.Errorf("remove %s: %v does not say who uses it", tt.ref, err)
		}
	}
	if got := files(t, s); !slices.Equal(got, bare) {
		t.Errorf("left: %q", got)
	}
}

func TestRemoveKeepsWhatOthersShare(t *testing.T) {
	reg, s := newServer(t), open(t, Options{})
	base := layerOf(t, archive(t, "base 1"))
	one := pull(t, s, reg.push(t, "one", imageOf(t, base, layerOf(t, archive(t, "one 1")))))
	two := pull(t, s, reg.push(t, "two", imageOf(t, base, layerOf(t, archive(t, "two 2")))))
	if one.Layers[0] != two.Layers[0] {
		t.Fatal("the base is not shared")
	}
	gone := lowerOf(t, s, one)[0]
	if _, _, err := s.Remove(t.Context(), one.ID, false, nobody); err != nil {
		t.Fatal(err)
	}
	if exists(gone) || !exists(lowerOf(t, s, two)[0]) || !exists(lowerOf(t, s, two)[1]) {
		t.Error("not what the other image needs is left")
	}
	if _, err := s.Find(t.Context(), two.ID); err != nil {
		t.Error(err)
	}
}

func TestPrune(t *testing.T) {
	reg, s := newServer(t), open(t, Options{})
	old := pull(t, s, reg.push(t, "app", imageOf(t, layerOf(t, archive(t, "version 1")))))
	now := pull(t, s, reg.push(t, "app", imageOf(t, layerOf(t, archive(t, "version 2")))))
	found, err := s.Find(t.Context(), old.ID)
	if err != nil || len(found.Names) != 0 || len(found.RepoDigests) != 1 {
		t.Fatalf("an image that lost its name: %+v, %v", found, err)
	}
	usedOld := func(id string) []string {
		if id == old.ID {
			return []string{"web"}
		}
		return nil
	}
	steps := []struct {
		all     bool
		used    Users
		deleted []string
	}{
		{false, usedOld, nil},
		{false, nobody, []string{old.ID}},
		{false, nobody, nil},
		{true, nobody, []string{now.ID}},
	}
	for i, tt := range steps {
		p, err := s.Prune(t.Context(), tt.all, tt.used)
		if err != nil || !slices.Equal(p.Deleted, tt.deleted) || (p.Freed > 0) != (tt.deleted != nil) {
			t.Errorf("step %d: %+v, %v; want %q deleted", i, p, err, tt.deleted)
		}
	}
	if got := files(t, s); !slices.Equal(got, bare) {
		t.Errorf("left: %q", got)
	}
}

// Nothing is removed between Hold and its release, and a pull that runs does
// not make rmi wait.
func TestHold(t *testing.T) {
	reg, s := newServer(t), open(t, Options{})
	img := pull(t, s, reg.push(t, "busybox", busybox(t)))
	release, err := s.Hold(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, _, err := s.Remove(ctx, img.ID, true, nobody)
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("remove while an image is held: %v", err)
	}
	if _, err := s.Find(t.Context(), img.ID); err != nil {
		t.Error(err)
	}
	release()

	end, err := s.begin(t.Context()) // as a pull does
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Remove(t.Context(), img.ID, true, nobody); err != nil {
		t.Error(err)
	}
	top := lowerOf(t, s, img)[0]
	if !exists(top) {
		t.Error("layers were removed while a pull ran that may have counted on them")
	}
	end()
	if err := s.collect(t.Context()); err != nil || exists(top) {
		t.Errorf("the pull's end left the layers: %v", err)
	}
}

// A layer that is in place but was never put on the disk is not believed after
// another boot.
func TestFirstOfBoot(t *testing.T) {
	reg, s := newServer(t), open(t, Options{})
	img := pull(t, s, reg.push(t, "busybox", busybox(t)))
	stray := s.path("layers", strings.Repeat("ab", 32))
	if err := os.MkdirAll(stray, 0o700); err != nil {
		t.Fatal(err)
	}
	end, err := s.begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	end()
	if !exists(stray) {
		t.Error("in the same boot, what a pull had was thrown away")
	}
	if err := os.WriteFile(s.path("boot"), []byte("another\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if end, err = s.begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	end()
	if exists(stray) || !exists(lowerOf(t, s, img)[0]) {
		t.Error("after a boot the index alone says what there is")
	}
}
