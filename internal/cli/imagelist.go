package cli

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"berth/internal/image"
)

// An imageRow is a name of an image as "docker images" lists it, in the order of
// its JSON.
type imageRow struct {
	Containers, CreatedAt, CreatedSince, Digest, ID, Repository, SharedSize, Size, Tag, UniqueSize, VirtualSize string
}

const none = "<none>"

var imageHeadings = header{
	"Containers": "CONTAINERS", "CreatedAt": "CREATED AT", "CreatedSince": "CREATED", "Digest": "DIGEST", "ID": "IMAGE ID", "Repository": "REPOSITORY",
	"SharedSize": "SHARED SIZE", "Size": "SIZE", "Tag": "TAG", "UniqueSize": "UNIQUE SIZE", "VirtualSize": "VIRTUAL SIZE",
}

// A named image is an image by one of its names.
type namedImage struct {
	image.Image
	name string // full; "": it has none
	all  []image.Image
}

var imageFilters = filters[namedImage]{
	"label":    func(i namedImage, v string) bool { return hasLabel(i.Config.Labels, v) },
	"dangling": func(i namedImage, v string) bool { return says(v, i.name == "") },
	"reference": func(i namedImage, v string) bool {
		repo, tag := image.Split(image.Short(i.name))
		for _, s := range []string{repo, repo + ":" + tag} {
			if ok, err := path.Match(v, s); err == nil && ok {
				return true
			}
		}
		return false
	},
	"before": func(i namedImage, v string) bool {
		o, ok := i.other(v)
		return ok && i.Created.Before(o.Created)
	},
	"since": func(i namedImage, v string) bool {
		o, ok := i.other(v)
		return ok && i.Created.After(o.Created)
	},
}

// other finds another image.
func (i namedImage) other(ref string) (image.Image, bool) {
	k := slices.IndexFunc(i.all, func(o image.Image) bool {
		return slices.Contains(o.Names, image.Full(ref)) || len(ref) >= 4 && strings.HasPrefix(strings.TrimPrefix(o.ID, "sha256:"), strings.TrimPrefix(ref, "sha256:"))
	})
	if k < 0 {
		return image.Image{}, false
	}
	return i.all[k], true
}

// imageListFlags are the flags of "images".
type imageListFlags struct {
	list
	all, digests bool
}

func (f *imageListFlags) flags(cmd *cobra.Command) {
	f.list.flags(cmd, "ids", imageFilters.keys())
	cmd.Flags().BoolVarP(&f.all, "all", "a", false, "as without: no image is hidden")
	cmd.Flags().BoolVar(&f.digests, "digests", false, "with digests")
	refuse(cmd, "images")
}

func (p *program) imageList(use string) *cobra.Command {
	var f imageListFlags
	cmd := &cobra.Command{
		Use: use + " [REPOSITORY[:TAG]]", Short: "List images", Args: cobra.MaximumNArgs(1),
		Example: "  berth images\n  berth images --format '{{.Repository}}:{{.Tag}} {{.Size}}'", ValidArgsFunction: p.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.withImages(func(s *image.Store) error {
				all, err := s.List(cmd.Context())
				if err != nil {
					return err
				}
				rows, err := f.rows(all, args, time.Now())
				if err != nil {
					return err
				}
				look := layout{headings: imageHeadings, shown: []string{"Repository", "Tag", "ID", "CreatedSince", "Size"}, quiet: "ID"}
				if f.digests {
					look.shown = slices.Insert(look.shown, 2, "Digest")
				}
				return show(f.list, p.out, look, rows)
			})
		},
	}
	if use == "ls" {
		cmd.Example = strings.ReplaceAll(cmd.Example, "berth images", "berth image ls")
	}
	f.flags(cmd)
	return cmd
}

// rows are the images as they are shown: one for each name.
func (f *imageListFlags) rows(all []image.Image, only []string, now time.Time) (rows []imageRow, err error) {
	match, err := imageFilters.compile(f.filters)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, img := range all {
		names := img.Names
		if len(names) == 0 {
			names = []string{""}
		}
		for _, n := range names {
			if !match(namedImage{img, n, all}) || len(only) > 0 && !wanted(n, only[0]) {
				continue
			}
			if f.quiet && slices.Contains(ids, img.ID) {
				continue
			}
			ids = append(ids, img.ID)
			rows = append(rows, f.row(img, n, now))
		}
	}
	return rows, nil
}

// wanted reports whether a full name is of a repository, or the name itself.
func wanted(name, word string) bool {
	repo, _ := image.Split(name)
	asked := image.Full(word)
	if !strings.Contains(word[strings.LastIndexByte(word, '/')+1:], ":") && !strings.Contains(word, "@") {
		asked, _ = image.Split(asked)
		return name != "" && repo == asked
	}
	return name != "" && name == asked
}

func (f *imageListFlags) row(img image.Image, name string, now time.Time) imageRow {
	repo, tag, digest := none, none, none
	if name != "" {
		full, _ := image.Split(name)
		if repo, tag = image.Split(image.Short(name)); strings.Contains(name, "@") {
			tag = none
		}
		for _, d := range img.RepoDigests {
			if at, ok := strings.CutPrefix(d, full+"@"); ok {
				digest = at
			}
		}
	}
	id := img.ID
	if !f.noTrunc {
		id = short(strings.TrimPrefix(id, "sha256:"), false)
	}
	size := decimal(img.Size)
	return imageRow{
		Containers: "N/A", CreatedAt: img.Created.Format("2006-01-02 15:04:05 -0700 MST"), CreatedSince: since(img.Created, now), Digest: digest, ID: id,
		Repository: repo, SharedSize: "N/A", Size: size, Tag: tag, UniqueSize: "N/A", VirtualSize: size,
	}
}

// An imageJSON is an image as "docker image inspect" shows it.
type imageJSON struct {
	ID           string `json:"Id"`
	RepoTags     []string
	RepoDigests  []string
	Created      time.Time
	Config       any
	Architecture string
	Os           string
	Variant      string `json:",omitempty"`
	Size         int64
	RootFS       rootfsJSON
}

type rootfsJSON struct {
	Type   string
	Layers []string
}

func (p *program) imageInspect() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "inspect IMAGE…", Short: "Show images in detail", Args: cobra.MinimumNArgs(1),
		Example: "  berth image inspect -f '{{.Config.Cmd}}' busybox", ValidArgsFunction: p.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.withImages(func(s *image.Store) error {
				out := []imageJSON{}
				err := each(args, func(ref string) error {
					img, err := s.Find(cmd.Context(), ref)
					if err == nil {
						out = append(out, imageAsJSON(img))
					}
					return err
				})
				return errors.Join(err, inspect(p.out, format, out))
			})
		},
	}
	detailFlag(cmd, &format)
	refuse(cmd, "image inspect")
	return cmd
}

func imageAsJSON(img image.Image) imageJSON {
	at := append(strings.Split(img.Platform, "/"), "", "", "")
	j := imageJSON{
		ID: img.ID, RepoTags: []string{}, RepoDigests: list0(img.RepoDigests), Created: img.Created, Config: img.Config, Os: at[0], Architecture: at[1], Variant: at[2],
		Size: img.Size, RootFS: rootfsJSON{"layers", list0(img.Layers)},
	}
	for _, n := range img.Names {
		if !strings.Contains(n, "@") {
			j.RepoTags = append(j.RepoTags, image.Short(n))
		}
	}
	for i, d := range j.RepoDigests {
		j.RepoDigests[i] = image.Short(d)
	}
	return j
}

// A historyRow is a step of an image's making as "docker history" lists it.
type historyRow struct{ Comment, CreatedAt, CreatedBy, CreatedSince, ID, Size string }

func (p *program) imageHistory() *cobra.Command {
	var l list
	var human bool
	cmd := &cobra.Command{
		Use: "history IMAGE", Short: "Show how an image was made", Args: cobra.ExactArgs(1),
		Example: "  berth history --no-trunc busybox", ValidArgsFunction: p.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.withImages(func(s *image.Store) error {
				img, err := s.Find(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				look := layout{
					headings: header{"Comment": "COMMENT", "CreatedAt": "CREATED AT", "CreatedBy": "CREATED BY", "CreatedSince": "CREATED", "ID": "IMAGE", "Size": "SIZE"},
					shown:    []string{"ID", "CreatedSince", "CreatedBy", "Size", "Comment"}, quiet: "ID",
				}
				return show(l, p.out, look, historyRows(img, s.Sizes(img), time.Now(), l.noTrunc, human))
			})
		},
	}
	l.formatFlag(cmd)
	f := cmd.Flags()
	f.BoolVarP(&l.quiet, "quiet", "q", false, "only ids")
	f.BoolVarP(&human, "human", "H", true, "sizes and times for people")
	f.BoolVar(&l.noTrunc, "no-trunc", false, "whole ids and commands")
	refuse(cmd, "history")
	return cmd
}

// historyRows are the steps, the last first. Of those before it no image is
// kept.
func historyRows(img image.Image, sizes []int64, now time.Time, whole, human bool) (rows []historyRow) {
	layer := 0
	for _, h := range img.History {
		size := int64(0)
		if !h.EmptyLayer && layer < len(sizes) {
			size = sizes[layer]
			layer++
		}
		command := strings.Join(strings.Fields(h.CreatedBy), " ")
		rows = append(rows, historyRow{
			Comment: h.Comment, CreatedAt: h.Created.Format(time.RFC3339), CreatedBy: ellipsis(command, 45, whole), CreatedSince: since(h.Created.Time, now),
			ID: "<missing>", Size: decimal(size),
		})
		if r := &rows[len(rows)-1]; !human {
			r.CreatedSince, r.Size = r.CreatedAt, fmt.Sprint(size)
		}
	}
	slices.Reverse(rows)
	if len(rows) > 0 {
		rows[0].ID = img.ID
		if !whole {
			rows[0].ID = short(strings.TrimPrefix(img.ID, "sha256:"), false)
		}
	}
	return rows
}
