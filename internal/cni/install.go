package cni

import (
	"cmp"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"berth"
)

// Where runtimes look for plugins and configurations unless they are told.
const (
	PluginDir = "/opt/cni/bin"
	ConfDir   = "/etc/cni/net.d"
)

// pluginName is the type by which a configuration asks for the plugin.
const pluginName = "berth"

// mainPackage is what a program of ours says of itself, wherever it lies.
const mainPackage = "berth/cmd/berth-cni"

// Install puts the program at from into dir as the plugin and returns its path.
// Whoever executes it meanwhile finds the old one or the new one. A file there
// that is not ours is replaced only by force.
func Install(from, dir string, force bool) (string, error) {
	path := filepath.Join(dir, pluginName)
	if !ours(from) {
		return "", fmt.Errorf("install %s: it is not berth-cni: %w", from, berth.ErrInvalid)
	}
	if err := replaceable(path, ours(path), force); err != nil {
		return "", fmt.Errorf("install %s: %w", path, err)
	}
	src, err := os.Open(from)
	if err != nil {
		return "", fmt.Errorf("install %s: %w", path, err)
	}
	defer src.Close()
	if err := place(path, src, 0o755); err != nil {
		return "", fmt.Errorf("install %s: %w", path, err)
	}
	return path, nil
}

// Uninstall removes the plugin from dir, with the links to it, and returns its path. A file that is
// not ours goes only by force.
func Uninstall(dir string, force bool) (string, error) {
	path := filepath.Join(dir, pluginName)
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("there is none: %w", berth.ErrNotFound)
	}
	if err == nil {
		err = replaceable(path, ours(path), force)
	}
	if err == nil {
		err = uninstallLinks(dir)
	}
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil {
		return "", fmt.Errorf("uninstall %s: %w", path, err)
	}
	return path, nil
}

// InstallLinks puts a link to the plugin into dir for each reference plugin that
// it stands in for, and returns their paths. None is put if a file there that is
// not ours is in the way, unless by force.
func InstallLinks(dir string, force bool) (paths []string, err error) {
	for _, name := range DropIns() {
		path := filepath.Join(dir, name)
		if err := replaceable(path, ours(path), force); err != nil {
			return nil, fmt.Errorf("install %s: %w", path, err)
		}
	}
	for _, name := range DropIns() {
		path := filepath.Join(dir, name)
		if err := placeLink(path); err != nil {
			return paths, fmt.Errorf("install %s: %w", path, err)
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// placeLink puts a link to the plugin over what is there.
func placeLink(path string) error {
	fresh := filepath.Join(filepath.Dir(path), ".berth-"+filepath.Base(path))
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(pluginName, fresh); err != nil {
		return err
	}
	if err := os.Rename(fresh, path); err != nil {
		return errors.Join(err, os.Remove(fresh))
	}
	return nil
}

// uninstallLinks removes the links to the plugin from dir.
func uninstallLinks(dir string) error {
	for _, name := range DropIns() {
		path := filepath.Join(dir, name)
		if to, err := os.Readlink(path); err != nil || to != pluginName {
			continue
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

// ours reports whether a file is the plugin's program.
func ours(path string) bool {
	info, err := buildinfo.ReadFile(path)
	return err == nil && info.Path == mainPackage
}

// replaceable refuses a file that is there and not ours.
func replaceable(path string, isOurs, force bool) error {
	i, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && (isOurs || force && !i.IsDir()):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("there is a file that is not Berth's: --force replaces it: %w", berth.ErrExists)
}

// place writes a file whole or not at all, over what is there.
func place(path string, content io.Reader, mode fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".berth-*") // runtimes read no hidden files
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = io.Copy(f, content)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// Conflist is a configuration for a network of Berth's, with every capability:
// a runtime gives those that it has. Root and run are the engine's directories,
// if they are not the usual ones.
func Conflist(network, version, root, run string) ([]byte, error) {
	if !slices.Contains(versions, version) {
		return nil, fmt.Errorf("CNI version %q: there are %s: %w", short(version), strings.Join(versions, ", "), berth.ErrInvalid)
	}
	plugin := struct {
		Type         string          `json:"type"`
		Root         string          `json:"root,omitempty"`
		Run          string          `json:"run,omitempty"`
		Capabilities map[string]bool `json:"capabilities"`
	}{pluginName, root, run, map[string]bool{}}
	for name, k := range runtimeKeys {
		if k.verdict != refused {
			plugin.Capabilities[name] = true
		}
	}
	b, err := json.MarshalIndent(struct {
		CNIVersion string `json:"cniVersion"`
		Name       string `json:"name"`
		Plugins    []any  `json:"plugins"`
	}{version, network, []any{plugin}}, "", "  ")
	return append(b, '\n'), err
}

// WriteConflist writes a configuration into dir and returns its path. A file of
// that name that is not for Berth is replaced only by force.
func WriteConflist(network string, conf []byte, dir string, force bool) (string, error) {
	path := filepath.Join(dir, "10-"+network+".conflist")
	_, isOurs := networkOf(path)
	err := replaceable(path, isOurs, force)
	if err == nil {
		err = place(path, strings.NewReader(string(conf)), 0o644)
	}
	if err != nil {
		return "", fmt.Errorf("write %s: %w", path, err)
	}
	return path, nil
}

// networkOf is the network of the first plugin of ours in a configuration.
func networkOf(path string) (network string, ok bool) {
	type plugin struct {
		Type, Name, Network string
	}
	var list struct {
		plugin
		Plugins []plugin
	}
	b, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(b, &list) != nil {
		return "", false
	}
	for _, p := range append(list.Plugins, list.plugin) {
		if p.Type == pluginName {
			return cmp.Or(p.Network, list.Name), true
		}
	}
	return "", false
}

// An Installed is a file of ours that a runtime reads.
type Installed struct {
	Kind    string // plugin or conflist
	Network string // of a conflist
	Path    string
}

// List returns the plugin in one directory and the configurations for Berth in
// another.
func List(pluginDir, confDir string) (all []Installed, err error) {
	if path := filepath.Join(pluginDir, pluginName); ours(path) {
		all = append(all, Installed{Kind: "plugin", Path: path})
	}
	entries, err := os.ReadDir(confDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return all, fmt.Errorf("list configurations: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(confDir, e.Name())
		if !slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(path)) {
			continue // libcni reads no others
		}
		if network, ok := networkOf(path); ok {
			all = append(all, Installed{"conflist", network, path})
		}
	}
	return all, nil
}
