// Command berth-manual writes Berth's manual pages into a directory. It is a
// program of its own because what it needs would make every start of berth half
// a millisecond longer.
package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"berth/internal/cli"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: berth-manual DIRECTORY")
		os.Exit(2)
	}
	root := cli.Root()
	root.DisableAutoGenTag = true
	if err := write(root, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "berth-manual:", err)
		os.Exit(1)
	}
}

// pageHead is the first line of a page, with the date that cobra puts there:
// pages of one source would differ from month to month.
var pageHead = regexp.MustCompile(`(?m)^\.TH ("[^"]*") ("[^"]*") "[^"]*" `)

func write(cmd *cobra.Command, dir string) error {
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			if err := write(c, dir); err != nil {
				return err
			}
		}
	}
	var page bytes.Buffer
	if err := doc.GenMan(cmd, &doc.GenManHeader{Section: "8", Source: "Berth", Manual: "Berth manual"}, &page); err != nil {
		return err
	}
	name := strings.ReplaceAll(cmd.CommandPath(), " ", "-") + ".8"
	return os.WriteFile(filepath.Join(dir, name), pageHead.ReplaceAll(page.Bytes(), []byte(`.TH $1 $2 "" `)), 0o644)
}
