package image

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"berth"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// Users tells which containers use an image, by their names.
type Users func(id string) []string

// Tag gives an image one more name. Another image that had it loses it.
func (s *Store) Tag(ctx context.Context, src, full string) error {
	r, err := parse(full)
	if err != nil {
		return err
	}
	if r.digest != "" {
		return fmt.Errorf("image name %q: a digest is not given, it is: %w", clip(full), berth.ErrInvalid)
	}
	return s.updateIndex(ctx, func(x index) (index, error) {
		id, _, err := x.find(src)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(x, func(d v1.Descriptor) bool { return idOf(d) == id })
		d, source := x[i], ""
		if strings.HasPrefix(sourceOf(d), r.repo()+"@") {
			source = sourceOf(d)
		}
		return x.with(d, r.String(), id, source), nil
	})
}

// Remove takes a name away from an image and, with the last one, the image.
// An image that is used is not removed; force takes only its names away.
// It returns the names that are gone and the ids of images that are.
// Containers are recorded between [Store.Hold] and its release, so used may
// look at their records, and be called by nobody who has them locked.
func (s *Store) Remove(ctx context.Context, ref string, force bool, used Users) (untagged, deleted []string, err error) {
	unlock, err := s.lock(ctx, lockHold, unix.LOCK_EX)
	if err != nil {
		return nil, nil, err
	}
	err = s.updateIndex(ctx, func(x index) (index, error) {
		id, full, err := x.find(ref)
		if err != nil {
			return nil, err
		}
		names := x.names(id)
		if full != "" && len(names) > 1 {
			untagged = []string{full}
			return slices.DeleteFunc(x, func(d v1.Descriptor) bool { return nameOf(d) == full }), nil
		}
		if rs := repos(names); len(rs) > 1 && !force {
			return nil, fmt.Errorf("remove image %s: it has names in several repositories (%s): say which one to take away, or use --force: %w",
				clip(ref), strings.Join(short(names), ", "), berth.ErrConflict)
		}
		untagged = names
		if by := used(id); len(by) > 0 {
			if !force || len(names) == 0 {
				return nil, fmt.Errorf("remove image %s: container %s uses it: remove the container first: %w", clip(ref), strings.Join(by, ", "), berth.ErrInUse)
			}
			return x.nameless(id), nil
		}
		for _, d := range x {
			if idOf(d) == id && sourceOf(d) != "" && !slices.Contains(untagged, sourceOf(d)) {
				untagged = append(untagged, sourceOf(d))
			}
		}
		deleted = []string{id}
		return slices.DeleteFunc(x, func(d v1.Descriptor) bool { return idOf(d) == id }), nil
	})
	unlock()
	if err != nil {
		return nil, nil, err
	}
	return untagged, deleted, s.collect(ctx)
}

// A Pruned is what Prune has removed.
type Pruned struct {
	Untagged []string // names
	Deleted  []string // ids of images
	Freed    int64    // bytes; also of what pulls that were cut off had left
}

// Prune removes the images that have no name, or with all those that nobody
// uses, and whatever belongs to no image.
func (s *Store) Prune(ctx context.Context, all bool, used Users) (Pruned, error) {
	var p Pruned
	unlock, err := s.lock(ctx, lockHold, unix.LOCK_EX)
	if err != nil {
		return p, err
	}
	err = s.updateIndex(ctx, func(x index) (index, error) {
		for _, d := range x {
			id := idOf(d)
			if slices.Contains(p.Deleted, id) || !all && len(x.names(id)) > 0 || len(used(id)) > 0 {
				continue
			}
			p.Untagged = append(p.Untagged, x.names(id)...)
			p.Deleted = append(p.Deleted, id)
		}
		return slices.DeleteFunc(x, func(d v1.Descriptor) bool { return slices.Contains(p.Deleted, idOf(d)) }), nil
	})
	unlock()
	if err != nil {
		return Pruned{}, err
	}
	p.Freed, err = s.collected(ctx)
	return p, err
}

// names lists the full names of an image.
func (x index) names(id string) (names []string) {
	for _, d := range x {
		if idOf(d) == id && nameOf(d) != "" {
			names = append(names, nameOf(d))
		}
	}
	return names
}

// nameless returns the index with the names of an image taken away.
func (x index) nameless(id string) index {
	for _, n := range x.names(id) {
		x = x.without(n)
	}
	return x
}

// repos lists the repositories of full names, each once.
func repos(names []string) (rs []string) {
	for _, n := range names {
		rs = append(rs, n[:strings.LastIndexByte(n, ':')])
	}
	slices.Sort(rs)
	return slices.Compact(rs)
}

func short(names []string) []string {
	s := make([]string, len(names))
	for i, n := range names {
		s[i] = Short(n)
	}
	return s
}
