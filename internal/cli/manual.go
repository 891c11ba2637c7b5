package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// manual writes the manual pages; "make docs" calls it.
func (p *program) manual() *cobra.Command {
	return &cobra.Command{
		Use: "manual DIRECTORY", Short: "Write the manual pages", Args: cobra.ExactArgs(1), Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			cmd.Root().DisableAutoGenTag = true
			return writeManual(cmd.Root(), args[0])
		},
	}
}

// pageHead is the first line of a page, with the date that cobra puts there:
// pages of one source would differ from month to month.
var pageHead = regexp.MustCompile(`(?m)^\.TH ("[^"]*") ("[^"]*") "[^"]*" `)

func writeManual(cmd *cobra.Command, dir string) error {
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			if err := writeManual(c, dir); err != nil {
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
